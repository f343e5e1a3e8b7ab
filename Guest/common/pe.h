// The parts of the Portable Executable format that the loader, and the kernel
// when it maps a program, must read. Source: Microsoft, "PE Format"
// (learn.microsoft.com/windows/win32/debug/pe-format).

#ifndef VIGIL_PE_H
#define VIGIL_PE_H

#include <stdint.h>

#define PE_DOS_SIGNATURE 0x5A4D
#define PE_SIGNATURE 0x00004550
#define PE_OPTIONAL_MAGIC_32 0x10B
#define PE_OPTIONAL_MAGIC_64 0x20B
#define PE_MACHINE_I386 0x014C
#define PE_MACHINE_AMD64 0x8664

#define PE_SECTION_DISCARDABLE 0x02000000u
#define PE_SECTION_EXECUTE 0x20000000u
#define PE_SECTION_READ 0x40000000u
#define PE_SECTION_WRITE 0x80000000u

#define PE_DIRECTORY_EXPORT 0
#define PE_DIRECTORY_IMPORT 1
#define PE_DIRECTORY_RELOCATION 5

#define PE_RELOCATION_ABSOLUTE 0
#define PE_RELOCATION_HIGHLOW 3 // 32 bits
#define PE_RELOCATION_DIR64 10
#define PE_RELOCATION_NATIVE (sizeof(void *) == 8 ? PE_RELOCATION_DIR64 : PE_RELOCATION_HIGHLOW)

typedef struct {
    uint32_t address;
    uint32_t size;
} PE_DIRECTORY;

// PE32 and PE32+ differ in the width of the image's base and of the sizes of stack
// and heap, after which the rest lies elsewhere: see PeDirectory.
typedef struct {
    uint32_t signature;
    uint16_t machine;
    uint16_t sectionCount;
    uint32_t timestamp;
    uint32_t symbolTable;
    uint32_t symbolCount;
    uint16_t optionalHeaderSize;
    uint16_t characteristics;
    uint16_t magic;
    uint8_t linkerVersion[2];
    uint32_t codeSize;
    uint32_t dataSize;
    uint32_t bssSize;
    uint32_t entryPoint;
    uint32_t codeBase;
    union {
        uint64_t imageBase64;
        struct {
            uint32_t dataBase, imageBase32;
        };
    };
    uint32_t sectionAlignment;
    uint32_t fileAlignment;
    uint16_t versions[6];
    uint32_t reserved;
    uint32_t imageSize;
    uint32_t headersSize;
    uint32_t checksum;
    uint16_t subsystem;
    uint16_t dllCharacteristics;
    union {
        struct {
            uint64_t stackAndHeap64[4];
            uint32_t loaderFlags64, directoryCount64;
            PE_DIRECTORY directories64[16];
        };
        struct {
            uint32_t stackAndHeap32[4];
            uint32_t loaderFlags32, directoryCount32;
            PE_DIRECTORY directories32[16];
        };
    };
} PE_HEADERS;

typedef struct {
    char name[8];
    uint32_t virtualSize;
    uint32_t virtualAddress;
    uint32_t rawSize;
    uint32_t rawOffset;
    uint32_t relocationsOffset;
    uint32_t linesOffset;
    uint16_t relocationCount;
    uint16_t lineCount;
    uint32_t characteristics;
} PE_SECTION;

typedef struct {
    uint32_t characteristics;
    uint32_t timestamp;
    uint32_t version;
    uint32_t name;
    uint32_t ordinalBase;
    uint32_t functionCount;
    uint32_t nameCount;
    uint32_t functions;
    uint32_t names;
    uint32_t ordinals;
} PE_EXPORTS;

typedef struct {
    uint32_t lookupTable;
    uint32_t timestamp;
    uint32_t forwarderChain;
    uint32_t name;
    uint32_t addressTable;
} PE_IMPORT;

static inline const PE_HEADERS *PeHeaders(const void *image)
{
    const uint8_t *bytes = image;
    if (*(const uint16_t *)bytes != PE_DOS_SIGNATURE)
        return 0;
    const PE_HEADERS *headers =
        (const PE_HEADERS *)(bytes + *(const uint32_t *)(bytes + 0x3C));
    int is64 = headers->machine == PE_MACHINE_AMD64 && headers->magic == PE_OPTIONAL_MAGIC_64;
    int is32 = headers->machine == PE_MACHINE_I386 && headers->magic == PE_OPTIONAL_MAGIC_32;
    return headers->signature == PE_SIGNATURE && (is64 || is32) ? headers : 0;
}

static inline int PeIs64(const PE_HEADERS *headers)
{
    return headers->magic == PE_OPTIONAL_MAGIC_64;
}

static inline uint64_t PeImageBase(const PE_HEADERS *headers)
{
    return PeIs64(headers) ? headers->imageBase64 : headers->imageBase32;
}

static inline void PeSetImageBase(PE_HEADERS *headers, uint64_t base)
{
    if (PeIs64(headers))
        headers->imageBase64 = base;
    else
        headers->imageBase32 = (uint32_t)base;
}

static inline PE_DIRECTORY PeDirectory(const PE_HEADERS *headers, unsigned index)
{
    return PeIs64(headers) ? headers->directories64[index] : headers->directories32[index];
}

static inline const PE_SECTION *PeSections(const PE_HEADERS *headers)
{
    // The section table follows the optional header, which begins at `magic`.
    return (const PE_SECTION *)((const uint8_t *)&headers->magic +
                                headers->optionalHeaderSize);
}

#endif
