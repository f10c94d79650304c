#include "system.h"

#include "queue.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "wire.h"

/* Frames up to this size share a chunk, which has about the size of one sendmsg(). */
#define SMALL_FRAME 1024
#define RUN 65536
#define FIRST_RUN 2048

struct chunk {
    struct chunk *next;
    struct frame *shared;  /* has the bytes; NULL: they are in bytes[] */
    size_t size;
    size_t capacity;       /* of a run that can grow; 0: not a run */
    size_t sent;
    size_t rest;           /* bytes of a partial frame at the start; 0: it starts with a whole one */
    unsigned char bytes[];
};

struct frame *frame_new(int first, const void *payload, size_t length)
{
    if (length > SIZE_MAX - sizeof(struct frame) - WIRE_MAX_HEADER) {
        return NULL;
    }
    struct frame *frame = malloc(sizeof *frame + WIRE_MAX_HEADER + length);
    if (frame != NULL) {
        size_t header = wire_encode_header(frame->bytes, first, length);
        if (length > 0) {
            memcpy(frame->bytes + header, payload, length);
        }
        frame->references = 1;
        frame->size = header + length;
    }
    return frame;
}

void frame_release(struct frame *frame)
{
    if (frame != NULL && --frame->references == 0) {
        free(frame);
    }
}

static const unsigned char *bytes_of(const struct chunk *chunk)
{
    return chunk->shared != NULL ? chunk->shared->bytes : chunk->bytes;
}

static void append(struct queue *queue, struct chunk *chunk)
{
    if (queue->last != NULL) {
        queue->last->next = chunk;
    } else {
        queue->first = chunk;
    }
    queue->last = chunk;
    queue->bytes += chunk->size - chunk->sent;
}

static void remove_first(struct queue *queue)
{
    struct chunk *chunk = queue->first;
    queue->first = chunk->next;
    if (queue->first == NULL) {
        queue->last = NULL;
    }
    queue->bytes -= chunk->size - chunk->sent;
    frame_release(chunk->shared);
    free(chunk);
}

void queue_clear(struct queue *queue)
{
    while (queue->first != NULL) {
        remove_first(queue);
    }
}

/* Return the bytes that the kernel took; -1: the peer has closed. */
static ssize_t send_parts(int fd, struct iovec *parts, size_t count)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    for (;;) {
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            return sent;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == ENOMEM) {
            return 0;
        }
        if (errno != EINTR) {
            /* Not an event here: reading finds the peer's last frames and the end of file. */
            return -1;
        }
    }
}

/* Append a chunk that is a copy of head and tail: a whole frame, or the rest of one. */
static enum queue_result append_copy(struct queue *queue, const void *head, size_t head_size,
                                     const void *tail, size_t tail_size, bool is_rest)
{
    size_t size = head_size + tail_size;
    bool is_run = size <= SMALL_FRAME;
    size_t capacity = is_run ? FIRST_RUN : size;
    struct chunk *chunk = malloc(sizeof *chunk + capacity);
    if (chunk == NULL) {
        return QUEUE_NO_MEMORY;
    }
    *chunk = (struct chunk){
        .size = size,
        .capacity = is_run ? capacity : 0,
        .rest = is_rest ? size : 0,
    };
    if (head_size > 0) {
        memcpy(chunk->bytes, head, head_size);
    }
    if (tail_size > 0) {
        memcpy(chunk->bytes + head_size, tail, tail_size);
    }
    append(queue, chunk);
    return QUEUE_DONE;
}

/* Append a small frame to the last chunk; false if that is not a run or has no room. */
static bool extend_run(struct queue *queue, const void *head, size_t head_size, const void *tail,
                       size_t tail_size)
{
    struct chunk *run = queue->last;
    size_t size = head_size + tail_size;
    if (run == NULL || run->capacity == 0 || size > SMALL_FRAME || run->size >= RUN) {
        return false;
    }
    if (run->size + size > run->capacity) {
        size_t capacity = run->capacity * 2;
        struct chunk **link = &queue->first;
        while (*link != run) {
            link = &(*link)->next;
        }
        run = realloc(run, sizeof *run + capacity);
        if (run == NULL) {
            return false; /* a new chunk needs less memory */
        }
        run->capacity = capacity;
        *link = queue->last = run;
    }
    memcpy(run->bytes + run->size, head, head_size);
    if (tail_size > 0) {
        memcpy(run->bytes + run->size + head_size, tail, tail_size);
    }
    run->size += size;
    queue->bytes += size;
    return true;
}

enum queue_result queue_write_pieces(struct queue *queue, int fd, const void *head,
                                     size_t head_size, const void *tail, size_t tail_size)
{
    size_t sent = 0;
    if (queue->first == NULL) {
        struct iovec parts[2] = {{(void *)(uintptr_t)head, head_size},
                                 {(void *)(uintptr_t)tail, tail_size}};
        ssize_t result = send_parts(fd, parts, tail_size > 0 ? 2 : 1);
        if (result < 0) {
            return QUEUE_DEAD;
        }
        sent = (size_t)result;
        if (sent == head_size + tail_size) {
            return QUEUE_DONE;
        }
    } else if (extend_run(queue, head, head_size, tail, tail_size)) {
        return QUEUE_DONE;
    }
    if (sent < head_size) {
        return append_copy(queue, (const unsigned char *)head + sent, head_size - sent, tail,
                           tail_size, sent > 0);
    }
    const unsigned char *bytes = tail;
    return append_copy(queue, NULL, 0, bytes + (sent - head_size), tail_size - (sent - head_size),
                       true);
}

enum queue_result queue_write(struct queue *queue, int fd, int first, const void *payload,
                              size_t length)
{
    unsigned char header[WIRE_MAX_HEADER];
    size_t size = wire_encode_header(header, first, length);
    return queue_write_pieces(queue, fd, header, size, payload, length);
}

enum queue_result queue_write_frame(struct queue *queue, int fd, struct frame *frame)
{
    size_t sent = 0;
    if (queue->first == NULL) {
        struct iovec part = {frame->bytes, frame->size};
        ssize_t result = send_parts(fd, &part, 1);
        if (result < 0) {
            return QUEUE_DEAD;
        }
        sent = (size_t)result;
        if (sent == frame->size) {
            return QUEUE_DONE;
        }
    } else if (extend_run(queue, frame->bytes, frame->size, NULL, 0)) {
        return QUEUE_DONE;
    }
    if (frame->size <= SMALL_FRAME) {
        return append_copy(queue, frame->bytes + sent, frame->size - sent, NULL, 0, sent > 0);
    }
    struct chunk *chunk = malloc(sizeof *chunk);
    if (chunk == NULL) {
        return QUEUE_NO_MEMORY;
    }
    frame->references++;
    *chunk = (struct chunk){.shared = frame, .size = frame->size, .sent = sent};
    append(queue, chunk);
    return QUEUE_DONE;
}

enum queue_result queue_flush(struct queue *queue, int fd)
{
    while (queue->first != NULL) {
        struct chunk *chunk = queue->first;
        struct iovec part = {(void *)(uintptr_t)(bytes_of(chunk) + chunk->sent),
                             chunk->size - chunk->sent};
        ssize_t sent = send_parts(fd, &part, 1);
        if (sent < 0) {
            queue_clear(queue);
            return QUEUE_DEAD;
        }
        chunk->sent += (size_t)sent;
        queue->bytes -= (size_t)sent;
        if (chunk->sent < chunk->size) {
            break;
        }
        remove_first(queue);
    }
    return QUEUE_DONE;
}

void queue_drop(struct queue *queue)
{
    struct chunk *chunk = queue->first;
    if (chunk == NULL) {
        return;
    }
    const unsigned char *bytes = bytes_of(chunk);
    size_t end = chunk->rest; /* of the frame that is half sent, if any */
    while (end < chunk->sent) {
        struct wire_header header = {0};
        const char *problem;
        /* Cannot fail: queue_write() and frame_new() encoded these headers. */
        (void)wire_decode_header(bytes + end, chunk->size - end, &header, &problem);
        end += header.size + (size_t)header.length;
    }
    if (chunk->rest == 0 && chunk->sent == 0) {
        end = 0;
    }
    while (chunk->next != NULL) {
        struct chunk *next = chunk->next;
        chunk->next = next->next;
        queue->bytes -= next->size - next->sent;
        frame_release(next->shared);
        free(next);
    }
    queue->last = chunk;
    queue->bytes -= chunk->size - end;
    chunk->size = end;
    if (end == chunk->sent) {
        remove_first(queue);
    }
}
