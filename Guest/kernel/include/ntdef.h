// Windows' basic types, status values and list operations, as the public
// headers of the Windows Driver Kit spell them.

#ifndef VIGIL_NTDEF_H
#define VIGIL_NTDEF_H

#include <stddef.h>
#include <stdint.h>

typedef void VOID, *PVOID, *HANDLE;
typedef char CHAR;
typedef signed char SCHAR;
typedef uint8_t UCHAR, BOOLEAN, *PUCHAR;
typedef int16_t SHORT;
typedef uint16_t USHORT, WCHAR;
typedef int32_t LONG, NTSTATUS;
typedef uint32_t ULONG, *PULONG;
typedef int64_t LONGLONG;
typedef uint64_t ULONGLONG, ULONG64;
typedef uintptr_t ULONG_PTR, SIZE_T;
typedef intptr_t LONG_PTR;
typedef UCHAR KIRQL;
typedef CHAR KPROCESSOR_MODE;

#define TRUE 1
#define FALSE 0
#define FORCEINLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define NORETURN _Noreturn
#define C_ASSERT(condition) _Static_assert(condition, #condition)
#define FIELD_AT(type, field, offset) C_ASSERT(offsetof(type, field) == (offset))
#define CONTAINING_RECORD(address, type, field) \
    ((type *)((PUCHAR)(address) - offsetof(type, field)))
#define ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))

// Sections: INIT is thrown away after boot, PAGE* is pageable, PAGELK is
// pageable and locked in memory while a power transition needs it.
#define INIT_CODE __attribute__((section("INIT")))
#define PAGED_CODE_SECTION __attribute__((section("PAGE")))
#define PAGELK_CODE __attribute__((section("PAGELK")))

typedef union {
    struct {
        ULONG LowPart;
        LONG HighPart;
    };
    LONGLONG QuadPart;
} LARGE_INTEGER, *PLARGE_INTEGER;

typedef struct _LIST_ENTRY {
    struct _LIST_ENTRY *Flink, *Blink;
} LIST_ENTRY, *PLIST_ENTRY;

typedef struct {
    USHORT Length, MaximumLength; // in bytes
    WCHAR *Buffer;
} UNICODE_STRING;

#define STATUS_SUCCESS ((NTSTATUS)0x00000000)
#define STATUS_TIMEOUT ((NTSTATUS)0x00000102)
#define STATUS_UNSUCCESSFUL ((NTSTATUS)0xC0000001)
#define STATUS_NOT_IMPLEMENTED ((NTSTATUS)0xC0000002)
#define STATUS_INVALID_INFO_CLASS ((NTSTATUS)0xC0000003)
#define STATUS_INFO_LENGTH_MISMATCH ((NTSTATUS)0xC0000004)
#define STATUS_ACCESS_VIOLATION ((NTSTATUS)0xC0000005)
#define STATUS_INVALID_HANDLE ((NTSTATUS)0xC0000008)
#define STATUS_INVALID_PARAMETER ((NTSTATUS)0xC000000D)
#define STATUS_NO_MEMORY ((NTSTATUS)0xC0000017)
#define STATUS_INVALID_SYSTEM_SERVICE ((NTSTATUS)0xC000001C)
#define STATUS_DISK_FULL ((NTSTATUS)0xC000007F)
#define STATUS_PRIVILEGE_NOT_HELD ((NTSTATUS)0xC0000061)
#define STATUS_INVALID_IMAGE_FORMAT ((NTSTATUS)0xC000007B)
#define STATUS_NOT_SUPPORTED ((NTSTATUS)0xC00000BB)
#define STATUS_ALREADY_COMMITTED ((NTSTATUS)0xC0000252)
#define STATUS_DEVICE_POWER_FAILURE ((NTSTATUS)0xC000009E)
#define NT_SUCCESS(status) ((NTSTATUS)(status) >= 0)

FORCEINLINE void InitializeListHead(PLIST_ENTRY Head)
{
    Head->Flink = Head->Blink = Head;
}

FORCEINLINE BOOLEAN IsListEmpty(const LIST_ENTRY *Head)
{
    return Head->Flink == Head;
}

FORCEINLINE void InsertHeadList(PLIST_ENTRY Head, PLIST_ENTRY Entry)
{
    Entry->Flink = Head->Flink;
    Entry->Blink = Head;
    Head->Flink->Blink = Entry;
    Head->Flink = Entry;
}

FORCEINLINE void InsertTailList(PLIST_ENTRY Head, PLIST_ENTRY Entry)
{
    InsertHeadList(Head->Blink, Entry);
}

FORCEINLINE void RemoveEntryList(PLIST_ENTRY Entry)
{
    Entry->Blink->Flink = Entry->Flink;
    Entry->Flink->Blink = Entry->Blink;
}

FORCEINLINE PLIST_ENTRY RemoveHeadList(PLIST_ENTRY Head)
{
    PLIST_ENTRY Entry = Head->Flink;
    RemoveEntryList(Entry);
    return Entry;
}

#endif
