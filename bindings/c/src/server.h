/* The server's loop: one epoll over the listening socket and every client's.
 *
 * Contract: for server.c, client.c and groups.c, on the one thread of the server.
 *
 * How this works: the sockets are watched level-triggered.  In a round, each client that is
 * ready has one turn: at most READ_BYTES are read, into the one buffer of the server, and at most
 * TURN_ITEMS items of these are given out.  If bytes are left, they move to memory of the client,
 * which waits for its turn in the next round and is not read before.  So a client that floods
 * delays another one by TURN_ITEMS messages, and what is buffered is bounded: one unfinished
 * message and one read per client.  A message that came whole is given out where it lies, without
 * a copy.
 *
 * How drain() loses nothing (docs/reference/wire.md, Moving): each client is sent a MOVE.  What it sends
 * before the bridge's answering MOVE becomes events as ever, and what the program sends
 * meanwhile goes to it as ever.  Behind these events comes its CLOSE, and when the program
 * comes back for the event after that, it has had its say: what it sent goes out, and the
 * socket is closed.  The listening socket stays open until the end, without its file: nobody
 * finds it any more, but who was on the way to it when the file went is let in and moved on
 * like everybody else.
 */
#ifndef APACHEWS_SERVER_H
#define APACHEWS_SERVER_H

#include <stdint.h>
#include <sys/epoll.h>

#include "client.h"
#include "socket_file.h"

/* One read from a socket: a third of what Linux buffers for a Unix socket. */
#define READ_BYTES 65536
/* Items of one client in a turn.  An echo takes some 3 us for each, so ten clients that flood
 * delay the next one by 2 ms; with fewer, the epoll_wait() of each round would show. */
#define TURN_ITEMS 64
/* Sockets that one call of epoll_wait() reports. */
#define READY_MAX 256

struct apachews_server {
    struct socket_file file;
    int epoll_fd;
    int wake_fd;
    uint64_t max_message_bytes;
    size_t max_queue_bytes;
    struct apachews_client *first, *last; /* all connections, the oldest first */
    struct apachews_client *leaving_first, *leaving_last;
    struct apachews_client *ended_first, *ended_last;
    struct apachews_client *buried;  /* gone, and perhaps among ready */
    struct apachews_client *current; /* whose turn it is */
    int turn_items;                  /* that its turn has given */
    /* Clients with unread bytes, the longest wait first: each holds its client. */
    struct apachews_client *waiting_first, *waiting_last;
    size_t waiting_count;
    size_t waiting_turns; /* that are left of this round */
    struct apachews_client *in_hand; /* whose last event the program has */
    unsigned char *held;             /* the message that the program has */
    void *groups;
    struct epoll_event ready[READY_MAX]; /* what no turn has looked at yet */
    int ready_count;
    int ready_at;
    bool holds_numbers; /* a descriptor's number is not used again while its client exists */
    bool is_accepting;
    bool is_stopped;
    bool is_draining;
    bool is_announced; /* to systemd, as ready */
    bool was_woken;
    int accept_error;          /* that no event has told of yet: errno, or 0 */
    int64_t accept_again_ms;   /* when a rest ends, or 0 */
    int64_t drain_deadline_ms; /* while it drains */
    char text[160];            /* of an event */
    unsigned char buffer[READ_BYTES + 1];
};

int64_t server_clock_ns(void);
/* Queue a connection's last event, once; it stays only to send its queue. */
void server_end(struct apachews_client *client, int code, const char *reason);
/* Follow a change of state or queue: deadline, epoll mask, end. */
void server_update(struct apachews_client *client);

#endif
