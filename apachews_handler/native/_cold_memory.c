/* Memory that a relay process needs rarely, or never again.
 *
 * Contract: see _tls_relay.h.  ``cold_memory_store`` is called once, by a process of one
 * thread, in which Python never runs again.
 *
 * How this works: a relay is a fork of an Apache child, with all of that child's Python.  Its
 * private memory is given back to the kernel in two ways.  What only Python used is discarded:
 *
 * - the pools in which Python's allocator keeps small objects.  Each begins with a header that
 *   says so (Objects/obmalloc.c, struct pool_header), and an address in it is checked as well;
 * - the data of Python's library.
 *
 * All other memory that programs write (the C library's heaps, mostly) becomes cold: each block
 * of 16 KiB is compressed, and made inaccessible.  The first access raises SIGSEGV, whose handler
 * writes the block back.  OpenSSL's objects lie between those of Python and httpd, so which
 * blocks it needs cannot be known; those that it uses come back once, and stay.  A Python
 * whose allocator is of another form only makes for a larger store.
 *
 * A mapping that proc(5) calls readable may have pages that are not: since glibc 2.42 the stacks of
 * threads have guard pages in it (madvise(2), MADV_GUARD_INSTALL).  Each block is read once before
 * it is examined; a block that cannot be read stays as it is.
 *
 * A system call that is given an address in a cold block fails with EFAULT instead.  The relay
 * gives the kernel its own static buffers only.
 *
 * The data of other libraries, the stack and the thread's own block stay as they are.
 *
 * Sources: dl_iterate_phdr(3), proc(5) maps, madvise(2), mprotect(2), sigaltstack(2).
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "_tls_relay.h"

#define BLOCK 16384u
#define MIN_MATCH 4u
#define HASH_BITS 12
#define MAX_RANGES 8192
#define MAX_SEGMENTS 2048
#define POOL BLOCK
#define POOL_ALIGNMENT 16u
#define POOL_CLASSES 32u

struct range {
    uintptr_t begin, end;
    int is_python; /* data of Python's library */
};

/* struct pool_header of Python's Objects/obmalloc.c, since 3.10 on 64-bit machines. */
struct pool {
    uint64_t allocated; /* number of objects; the upper half is undefined */
    uint64_t free_block, next_pool, previous_pool;
    uint32_t arena, size_class, next_offset, last_offset;
};

struct block {
    uintptr_t address;
    uint32_t size;   /* bytes of memory */
    uint32_t stored; /* bytes in the store; 0: the block was written back */
    size_t offset;   /* in the store */
};

static struct range ranges[MAX_RANGES];
static struct range segments[MAX_SEGMENTS];
static struct range python_data; /* of Python's library, with and without a file */
static size_t range_count, segment_count, page_size;
static struct block *blocks;
static size_t block_count;
static unsigned char *store;
static uint16_t positions[1u << HASH_BITS];
static unsigned char handler_stack[65536];
static sigjmp_buf unreadable; /* from on_fault to is_readable */
static volatile sig_atomic_t is_probing;

/* --- Compression: literals and matches, as in LZ4's block format. --- */

static uint32_t load32(const unsigned char *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof value);
    return value;
}

/* Append a length beyond 15; return the end, NULL without room. */
static unsigned char *put_length(unsigned char *to, const unsigned char *limit, size_t length)
{
    for (; length >= 255; length -= 255) {
        if (to == limit)
            return NULL;
        *to++ = 255;
    }
    if (to == limit)
        return NULL;
    *to++ = (unsigned char)length;
    return to;
}

/* Append literals and a match; a match of 0 bytes ends the block. */
static unsigned char *put_sequence(unsigned char *to, const unsigned char *limit,
                                   const unsigned char *literals, size_t count, size_t match,
                                   size_t distance)
{
    size_t rest = match ? match - MIN_MATCH : 0;

    if (to == limit)
        return NULL;
    *to++ = (unsigned char)((count < 15 ? count : 15) << 4 | (rest < 15 ? rest : 15));
    if (count >= 15 && (to = put_length(to, limit, count - 15)) == NULL)
        return NULL;
    if ((size_t)(limit - to) < count + 2)
        return NULL;
    memcpy(to, literals, count);
    to += count;
    *to++ = (unsigned char)(distance & 0xff);
    *to++ = (unsigned char)(distance >> 8);
    if (rest >= 15)
        to = put_length(to, limit, rest - 15);
    return to;
}

size_t cold_memory_compress(const unsigned char *from, size_t size, unsigned char *to, size_t room)
{
    const unsigned char *limit = to + room, *begin = to;
    size_t at = 0, anchor = 0;

    memset(positions, 0, sizeof positions);
    while (size >= MIN_MATCH && at <= size - MIN_MATCH) {
        uint32_t hash = (load32(from + at) * 2654435761u) >> (32 - HASH_BITS);
        size_t candidate = positions[hash], length = MIN_MATCH;

        positions[hash] = (uint16_t)at;
        if (candidate >= at || load32(from + candidate) != load32(from + at)) {
            at++;
            continue;
        }
        while (at + length < size && from[candidate + length] == from[at + length])
            length++;
        to = put_sequence(to, limit, from + anchor, at - anchor, length, at - candidate);
        if (to == NULL)
            return 0;
        at += length;
        anchor = at;
    }
    to = put_sequence(to, limit, from + anchor, size - anchor, 0, 0);
    return to == NULL ? 0 : (size_t)(to - begin);
}

static size_t get_length(const unsigned char **from, const unsigned char *limit)
{
    size_t length = 0;

    while (*from < limit) {
        unsigned char byte = *(*from)++;

        length += byte;
        if (byte != 255)
            break;
    }
    return length;
}

int cold_memory_expand(const unsigned char *from, size_t stored, unsigned char *to, size_t size)
{
    const unsigned char *limit = from + stored;
    size_t at = 0;

    while (from < limit) {
        unsigned char token = *from++;
        size_t count = token >> 4, length = token & 15, distance;

        if (count == 15)
            count += get_length(&from, limit);
        if (count > size - at || (size_t)(limit - from) < count + 2)
            return -1;
        memcpy(to + at, from, count);
        from += count;
        at += count;
        distance = (size_t)from[0] | (size_t)from[1] << 8;
        from += 2;
        if (distance == 0)
            break;
        if (length == 15)
            length += get_length(&from, limit);
        length += MIN_MATCH;
        if (distance > at || length > size - at)
            return -1;
        for (; length > 0; length--, at++) /* the two may overlap */
            to[at] = to[at - distance];
    }
    return at == size ? 0 : -1;
}

/* --- Which memory there is --- */

/* Note the writable data of a library, which stays.  Of Python's, what is in a file is discarded
 * (add_line), and what is not, its .bss, stays.  Both may have the heads of the lists of pools. */
static int note_segments(struct dl_phdr_info *info, size_t size, void *python)
{
    uintptr_t own = *(uintptr_t *)python;
    int i;

    (void)size;
    for (i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        uintptr_t begin = info->dlpi_addr + header->p_vaddr, end = begin + header->p_memsz;

        if (header->p_type != PT_LOAD || !(header->p_flags & PF_W))
            continue;
        if (own >= begin && own < end) {
            python_data.begin = begin;
            python_data.end = end;
            if (*info->dlpi_name) /* and not the program itself */
                begin = (begin + header->p_filesz + page_size - 1) & ~(page_size - 1);
        }
        if (segment_count == MAX_SEGMENTS)
            return -1;
        segments[segment_count].begin = begin & ~(page_size - 1);
        segments[segment_count++].end = (end + page_size - 1) & ~(page_size - 1);
    }
    return 0;
}

static int add_range(uintptr_t begin, uintptr_t end, int is_python)
{
    if (begin >= end)
        return 0;
    if (range_count == MAX_RANGES)
        return -1;
    ranges[range_count].begin = begin;
    ranges[range_count].end = end;
    ranges[range_count++].is_python = is_python;
    return 0;
}

/* Add a range without the segments in it. */
static int add_around(uintptr_t begin, uintptr_t end, int is_python)
{
    size_t i;

    for (i = 0; i < segment_count; i++) {
        const struct range *segment = &segments[i];

        if (segment->begin >= end || segment->end <= begin)
            continue;
        if (segment->begin > begin && add_around(begin, segment->begin, is_python) < 0)
            return -1;
        if (segment->end >= end)
            return 0;
        begin = segment->end;
    }
    return add_range(begin, end, is_python);
}

/* Look at a line of /proc/self/maps: begin-end mode offset device inode name. */
static int add_line(const char *line, uintptr_t python)
{
    uintptr_t begin, end, thread = (uintptr_t)&errno, here;
    char mode[5];
    unsigned long inode;
    int name_at = 0, is_heap, is_python;

    here = (uintptr_t)&begin; /* the stack; errno is in the block of the thread */
    if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %*x %*x:%*x %lu %n", &begin, &end, mode,
               &inode, &name_at) < 4 || name_at == 0)
        return 0;
    line += name_at;
    is_heap = strcmp(line, "[heap]") == 0;
    is_python = python >= begin && python < end;
    if (strcmp(mode, "rw-p") != 0 || (inode != 0 && !is_python))
        return 0;
    if (*line == '[' && !is_heap && strncmp(line, "[anon", 5) != 0)
        return 0; /* the stack, and what is the kernel's */
    if ((thread >= begin && thread < end) || (here >= begin && here < end))
        return 0;
    return add_around(begin, end, is_python);
}

static int read_maps(uintptr_t python)
{
    static char text[65536];
    size_t used = 0;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC), result = 0;

    if (fd < 0)
        return -1;
    for (;;) {
        ssize_t count = read(fd, text + used, sizeof text - 1 - used);
        char *line = text, *end;

        if (count <= 0)
            break;
        used += (size_t)count;
        text[used] = 0;
        while ((end = strchr(line, '\n')) != NULL) {
            *end = 0;
            if ((result = add_line(line, python)) < 0)
                goto out;
            line = end + 1;
        }
        used -= (size_t)(line - text);
        memmove(text, line, used);
    }
out:
    close(fd);
    return result;
}

static void *map(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

/* Find the ranges and make room for what becomes of them. */
static int prepare(uintptr_t python)
{
    size_t i, size = 0;

    page_size = (size_t)sysconf(_SC_PAGESIZE);
    if (page_size > BLOCK || dl_iterate_phdr(note_segments, &python) != 0 ||
        read_maps(python) < 0)
        return -1;
    for (i = 0; i < range_count; i++)
        size += ranges[i].end - ranges[i].begin + BLOCK;
    /* Of both only what is used takes memory.  No block becomes larger in the store. */
    blocks = map(size / BLOCK * sizeof *blocks);
    store = map(size);
    return blocks && store ? 0 : -1;
}

/* --- Giving it back --- */

static int is_zero(const unsigned char *data, size_t size)
{
    return data[0] == 0 && memcmp(data, data + 1, size - 1) == 0;
}

static void write_back(struct block *block)
{
    if (block->stored == 0)
        return;
    if (cold_memory_expand(store + block->offset, block->stored, (unsigned char *)block->address,
                           block->size) < 0)
        abort(); /* the store was overwritten */
    block->stored = 0;
}

/* The kernel has no room for one mapping more: make everything accessible, as it was. */
static int write_all_back(void)
{
    size_t i;

    for (i = 0; i < range_count; i++)
        if (mprotect((void *)ranges[i].begin, ranges[i].end - ranges[i].begin,
                     PROT_READ | PROT_WRITE) < 0)
            return -1;
    for (i = 0; i < block_count; i++)
        write_back(&blocks[i]);
    return 0;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    uintptr_t address = (uintptr_t)info->si_addr;
    size_t low = 0, high = block_count;
    int error = errno;

    (void)context;
    if (is_probing) /* a page of the block that is_readable() reads */
        siglongjmp(unreadable, 1);
    while (low < high) {
        size_t middle = (low + high) / 2;
        struct block *block = &blocks[middle];

        if (address < block->address)
            high = middle;
        else if (address >= block->address + block->size)
            low = middle + 1;
        else if (block->stored == 0)
            break;
        else {
            if (mprotect((void *)block->address, block->size, PROT_READ | PROT_WRITE) == 0)
                write_back(block);
            else if (write_all_back() < 0)
                break;
            errno = error;
            return;
        }
    }
    signal(number, SIG_DFL); /* a fault of another kind comes again, and ends the process */
}

static int catch_faults(void)
{
    struct sigaction action;
    stack_t stack;
    sigset_t set;

    memset(&stack, 0, sizeof stack);
    stack.ss_sp = handler_stack;
    stack.ss_size = sizeof handler_stack;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigfillset(&action.sa_mask);
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    if (sigaltstack(&stack, NULL) < 0 || sigaction(SIGSEGV, &action, NULL) < 0)
        return -1;
    return sigprocmask(SIG_UNBLOCK, &set, NULL);
}

/* Tell whether every page of a block can be read. */
static int is_readable(uintptr_t address, size_t size)
{
    const volatile unsigned char *data = (const volatile unsigned char *)address;
    size_t at;

    if (sigsetjmp(unreadable, 1) != 0) {
        is_probing = 0;
        return 0;
    }
    is_probing = 1;
    for (at = 0; at < size; at += page_size)
        (void)data[at];
    is_probing = 0;
    return 1;
}

static int is_in_ranges(uintptr_t address)
{
    size_t low = 0, high = range_count;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (address < ranges[middle].begin)
            high = middle;
        else if (address >= ranges[middle].end)
            low = middle + 1;
        else
            return 1;
    }
    return 0;
}

/* Tell whether a block is a pool of Python's allocator.  Its neighbour in the list of pools is
 * another one, or in the data of Python's library: what a client sent cannot name it. */
static int is_pool(uintptr_t address)
{
    const struct pool *pool = (const struct pool *)address;
    uint32_t size = (pool->size_class + 1) * POOL_ALIGNMENT;

    return pool->size_class < POOL_CLASSES && pool->last_offset == POOL - size &&
           pool->next_offset % POOL_ALIGNMENT == 0 && pool->next_offset <= POOL &&
           (uint32_t)pool->allocated <= POOL / size &&
           (pool->free_block == 0 || pool->free_block / POOL == address / POOL) &&
           (is_in_ranges(pool->previous_pool) ||
            (pool->previous_pool >= python_data.begin && pool->previous_pool < python_data.end));
}

/* Discard what only Python used.  Nothing else was in these pages. */
static void discard_python(void)
{
    size_t i;

    for (i = 0; i < range_count; i++) {
        uintptr_t at = (ranges[i].begin + POOL - 1) / POOL * POOL;

        if (ranges[i].is_python) {
            madvise((void *)ranges[i].begin, ranges[i].end - ranges[i].begin, MADV_DONTNEED);
            continue;
        }
        for (; at + POOL <= ranges[i].end; at += POOL)
            if (is_readable(at, POOL) && is_pool(at))
                madvise((void *)at, POOL, MADV_DONTNEED);
    }
}

/* Compress a block and make it inaccessible; return its size in the store. */
static size_t store_block(uintptr_t address, size_t size, size_t offset)
{
    unsigned char *data = (unsigned char *)address;
    size_t stored;

    if (!is_readable(address, size))
        return 0;
    if (is_zero(data, size)) {
        madvise(data, size, MADV_DONTNEED);
        return 0;
    }
    stored = cold_memory_compress(data, size, store + offset, size - size / 8);
    if (stored == 0 || mprotect(data, size, PROT_NONE) < 0)
        return 0;
    blocks[block_count].address = address;
    blocks[block_count].size = (uint32_t)size;
    blocks[block_count].offset = offset;
    blocks[block_count++].stored = (uint32_t)stored;
    madvise(data, size, MADV_DONTNEED);
    return stored;
}

void cold_memory_store(uintptr_t python)
{
    size_t i, offset = 0;

    if (prepare(python) < 0 || catch_faults() < 0)
        return;
    discard_python();
    for (i = 0; i < range_count; i++) {
        uintptr_t at = ranges[i].begin;

        while (!ranges[i].is_python && at < ranges[i].end) {
            size_t size = ranges[i].end - at < BLOCK ? ranges[i].end - at : BLOCK;

            offset += store_block(at, size, offset);
            at += size;
        }
    }
}
