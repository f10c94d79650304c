/* What waits for the kernel to take it: the frames for one connection.
 *
 * Contract: queue_write() sends what goes at once and keeps the rest; queue_flush() sends what
 * goes of that.  Nothing blocks, and no signal is raised.  The caller watches the descriptor
 * while there is a queue.
 *
 * How this works: a list of chunks, each of whole frames but for the beginning of the first,
 * which may be sent already.  Large frames that are meant for many are one object for all of
 * them.  Small ones run together, so that a million tiny messages take the memory of their
 * bytes.  Once a frame is half sent its rest must go before anything else; where that ends,
 * in a run of frames, their headers tell.
 */
#ifndef APACHEWS_QUEUE_H
#define APACHEWS_QUEUE_H

#include <stdbool.h>
#include <stddef.h>

/* A whole frame, made once for all who get it. */
struct frame {
    size_t users;
    size_t size;
    unsigned char bytes[];
};

/* Make one for a user, who ends with frame_release(); NULL for no memory. */
struct frame *frame_new(int first, const void *payload, size_t length);
void frame_release(struct frame *frame);

struct chunk;

struct queue {
    struct chunk *first;
    struct chunk *last;
    size_t bytes; /* that wait */
};

/* QUEUE_DEAD: nobody takes anything any more, and the queue is empty.  QUEUE_NO_MEMORY: a part
 * of the frame may have gone; nothing can follow it. */
enum queue_result { QUEUE_DONE, QUEUE_DEAD, QUEUE_NO_MEMORY };

/* Send or queue a frame. */
enum queue_result queue_write(struct queue *queue, int fd, int first, const void *payload,
                              size_t length);
/* The same with one that others get as well. */
enum queue_result queue_write_frame(struct queue *queue, int fd, struct frame *frame);
/* Send what the kernel takes of the queue. */
enum queue_result queue_flush(struct queue *queue, int fd);
/* Forget what is queued, but for the rest of a frame that is half sent. */
void queue_drop(struct queue *queue);
void queue_clear(struct queue *queue);

#endif
