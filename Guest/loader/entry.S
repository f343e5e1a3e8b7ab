// Entry of the loader: multiboot 1, 32-bit protected mode, paging off
// (Multiboot Specification 0.6.96, section 3.2), up to 64-bit C.

    .intel_syntax noprefix

    .section .header, "a"
    .balign 4
// The a.out-kludge fields (flag bit 16) place the flat binary: QEMU's
// multiboot loader refuses a 64-bit ELF.
#define MULTIBOOT_MAGIC 0x1BADB002
#define MULTIBOOT_FLAGS 0x00010003
MultibootHeader:
    .long MULTIBOOT_MAGIC
    .long MULTIBOOT_FLAGS
    .long -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)
    .long MultibootHeader
    .long LoaderStart
    .long LoaderDataEnd
    .long LoaderEnd
    .long LoaderEntry32

    .section .text, "ax"
    .code32
    .globl LoaderEntry32
LoaderEntry32:
    cli
    cld
    cmp eax, 0x2BADB002
    jne Halt32
    mov esp, offset LoaderStackTop
    mov esi, ebx

    // The first 4 GiB mapped to themselves by 2 MiB pages, to build the
    // kernel's own tables from.
    mov edi, offset LoaderDirectories
    mov eax, 0x83                       // present, writable, large
    mov ecx, 2048
1:  mov [edi], eax
    mov dword ptr [edi + 4], 0
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 1b
    mov edi, offset LoaderPointers
    mov eax, offset LoaderDirectories + 3
    mov ecx, 4
2:  mov [edi], eax
    mov dword ptr [edi + 4], 0
    add eax, 0x1000
    add edi, 8
    dec ecx
    jnz 2b
    mov dword ptr [LoaderRoot], offset LoaderPointers + 3
    mov dword ptr [LoaderRoot + 4], 0

    // Into IA-32e mode: Intel SDM volume 3A, section 9.8.5.
    mov eax, cr4
    or eax, 0x20                        // PAE
    mov cr4, eax
    mov eax, offset LoaderRoot
    mov cr3, eax
    mov ecx, 0xC0000080                 // IA32_EFER
    rdmsr
    or eax, 0x901                       // SCE, LME, NXE
    wrmsr
    mov eax, cr0
    or eax, 0x80010001                  // PG, WP, PE
    mov cr0, eax
    lgdt [LoaderGdtPointer]
    // A far return: the target's selector and offset on the stack.
    push 8
    mov eax, offset LoaderEntry64
    push eax
    retf

Halt32:
    hlt
    jmp Halt32

    .code64
LoaderEntry64:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lea rsp, [rip + LoaderStackTop]
    mov edi, esi
    call LoaderMain
1:  hlt
    jmp 1b

// void EnterKernel(uint64_t root, uint64_t entry, const BOOT_BLOCK *block)
// The loader's own pages are mapped under both roots. The kernel takes its
// argument in RCX, as every Windows function.
    .globl EnterKernel
EnterKernel:
    mov cr3, rdi
    mov rcx, rdx
    jmp rsi

// void Enter32(uint64_t root, uint64_t entry, uint64_t stack, uint64_t argument,
// uint64_t paging): out of long mode, as Intel SDM volume 3A, section 9.8.5.4, has
// it, into the paging that the kernel wants, and to its entry, with the argument on
// its stack. May be moved: it runs where it is mapped one to one before and after,
// and brings its own segments. Nothing is pushed before the kernel's root is in use.
    .section .resume, "ax"
    .balign 16
    .globl Enter32
Enter32:
    lea rax, [rip + Enter32Gdt]
    mov [rip + Enter32GdtPointer + 2], rax
    lgdt [rip + Enter32GdtPointer]
    mov ebx, edi                        // root
    mov edi, edx                        // stack
    mov ebp, r8d                        // paging
    lea rax, [rip + Enter32Compatible]
    push 8
    push rax
    .byte 0x48, 0xCB                    // a far return with operands of 64 bits

    .code32
Enter32Compatible:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, ecx                        // the argument, for a while
    mov eax, cr0
    and eax, 0x7FFFFFFF                 // PG off
    mov cr0, eax
    mov ecx, 0xC0000080                 // IA32_EFER
    rdmsr
    and eax, 0xFFFFFEFE                 // neither LME nor SCE; NXE stays
    wrmsr
    mov eax, 0x20                       // PAE
    cmp ebp, 2                          // HIBERNATION_PAGING_PLAIN
    jne 1f
    mov eax, 0x10                       // PSE
1:  mov cr4, eax
    mov cr3, ebx
    mov eax, cr0
    or eax, 0x80010000                  // PG, WP
    mov cr0, eax
    mov ecx, esp
    mov esp, edi
    push ecx
    push 0                              // nowhere to return to
    jmp esi

    .balign 8
Enter32Gdt:
    .quad 0
    .quad 0x00CF9B000000FFFF            // 32-bit code
    .quad 0x00CF93000000FFFF            // data
Enter32GdtPointer:
    .short 23
    .quad 0

    .text
    .code64
// void EnterResume(uint64_t root, uint64_t stack, uint64_t code, const void *argument)
    .globl EnterResume
EnterResume:
    mov cr3, rdi
    mov rsp, rsi
    mov rdi, rcx
    call rdx
1:  hlt
    jmp 1b

    .section .data, "aw"
    .balign 8
LoaderGdt:
    .quad 0
    .quad 0x00AF9B000000FFFF            // 64-bit code
    .quad 0x00CF93000000FFFF            // data
LoaderGdtPointer:
    .short LoaderGdtPointer - LoaderGdt - 1
    .long LoaderGdt
    .long 0

    .section .bss, "aw", @nobits
    .balign 4096
LoaderRoot:
    .skip 4096
    .globl LoaderPointers
LoaderPointers:
    .skip 4096
LoaderDirectories:
    .skip 4 * 4096
    .skip 16384
    .globl LoaderStackTop
LoaderStackTop:
