/* The send queue of one connection.
 *
 * Contract: queue_write() sends as much as the kernel takes and queues the rest; queue_flush()
 * sends queued bytes.  Nothing blocks or raises SIGPIPE.  The caller polls the file descriptor for
 * EPOLLOUT while the queue is not empty.
 *
 * How this works: the queue is a list of chunks of whole frames; only of the first chunk a part
 * may be sent already.  A large frame for many clients is one object with a reference count.
 * Small frames share a chunk (a run), so that a million tiny messages take little more memory
 * than their bytes.  The rest of a frame that is half sent must be sent before anything else;
 * the frame headers in a run tell its end.
 */
#ifndef APACHEWS_QUEUE_H
#define APACHEWS_QUEUE_H

#include <stdbool.h>
#include <stddef.h>

/* A whole frame, shared by all its receivers. */
struct frame {
    size_t references;
    size_t size;
    unsigned char bytes[];
};

/* Make a frame with one reference, for frame_release(); NULL: out of memory. */
struct frame *frame_new(int first, const void *payload, size_t length);
void frame_release(struct frame *frame);

struct chunk;

struct queue {
    struct chunk *first;
    struct chunk *last;
    size_t bytes; /* unsent */
};

/* QUEUE_DEAD: the peer has closed, and the queue is empty.  QUEUE_NO_MEMORY: a part of the frame
 * may be sent, so no other frame can follow. */
enum queue_result { QUEUE_DONE, QUEUE_DEAD, QUEUE_NO_MEMORY };

/* Send or queue a frame. */
enum queue_result queue_write(struct queue *queue, int fd, int first, const void *payload,
                              size_t length);
/* Send or queue a frame in two pieces: its header, with any part of its payload, and the rest. */
enum queue_result queue_write_pieces(struct queue *queue, int fd, const void *head,
                                     size_t head_size, const void *tail, size_t tail_size);
/* Send or queue a shared frame. */
enum queue_result queue_write_frame(struct queue *queue, int fd, struct frame *frame);
/* Send as much of the queue as the kernel takes. */
enum queue_result queue_flush(struct queue *queue, int fd);
/* Discard the queue, except the rest of a frame that is half sent. */
void queue_drop(struct queue *queue);
/* Discard all of the queue. */
void queue_clear(struct queue *queue);

#endif
