/* One connection of a server: state, reader, and the queue to it.
 *
 * Contract: made and ended by server.c; client.c has what a program does with one.  Everything
 * is on the server's thread, and nothing blocks.
 *
 * How it is counted: the server's list holds a client, its last event does until the program
 * comes for the next one, and so does whoever keeps it.  The last of them frees it; its
 * descriptor, queue and reader are gone when it leaves the list.
 */
#ifndef APACHEWS_CLIENT_H
#define APACHEWS_CLIENT_H

#include <stdint.h>

#include "apachews.h"
#include "queue.h"
#include "wire.h"

/* Where a connection is in its life; it only ever moves down this list. */
enum state {
    CONNECTING, /* no OPEN yet */
    PUBLISHING, /* it is no client: what it sends is for clients */
    ASKED,      /* the bridge waits for an ANSWER */
    OPEN,       /* messages flow */
    MOVING,     /* messages flow; a MOVE is sent or queued, the bridge's is awaited */
    MOVED,      /* the bridge's MOVE is read, and the last event waits */
    PARTING,    /* the program has the last event in hand: it may still send */
    CLOSING,    /* a CLOSE is sent or queued, the answer is awaited; messages are ignored */
    CLOSED      /* the last event is out or waits; at most the queue is still being sent */
};

struct membership;

struct apachews_client {
    apachews_server *server; /* not to be looked at once fd is -1: that one may be freed */
    size_t holders;
    int fd; /* -1 once it is gone */
    int number;   /* of the descriptor, also once it is gone */
    bool is_held; /* the number: the socket is shut down, and closed with the client */
    enum state state;
    uint32_t watched; /* the epoll mask in force */
    bool has_moved;   /* the bridge's MOVE is read; nothing more comes from there */
    bool was_rejected;
    bool sends_binary; /* its last message was */
    struct wire_reader reader;
    /* What its last turns left of a read, where the reader has it; NULL: nothing. */
    unsigned char *unread;
    struct queue queue;
    struct request *request; /* NULL until there was an OPEN */
    void *data;
    char *publishes_to; /* PUBLISHING: the group, or NULL for all */
    char *language;     /* made by original.c */
    struct membership *memberships;
    unsigned char ping[8]; /* the last one's payload, and when */
    int64_t pinged_at_ns;  /* 0: none is awaited */
    int64_t deadline_ms;   /* when it must be gone, once it leaves; 0: it does not */
    int end_code;          /* of its last event */
    char end_reason[WIRE_MAX_CONTROL + 3];
    struct apachews_client *previous, *next;                 /* in the server's list */
    struct apachews_client *leaving_previous, *leaving_next; /* by deadline */
    struct apachews_client *ended_next;                      /* whose last event waits */
    struct apachews_client *buried_next;                     /* that have left the list */
    struct apachews_client *waiting_next;                    /* with unread bytes */
};

/* Where messages go to the client, and where they come from it. */
bool client_is_sending(const struct apachews_client *client);
bool client_is_receiving(const struct apachews_client *client);
/* False while it must first take what is queued, and once it has moved. */
bool client_wants_reading(const struct apachews_client *client);

/* What errno says of a message: 0, EILSEQ or EINVAL. */
int client_check_message(apachews_type type, const void *data, size_t length);

/* Send or queue a frame to a client that messages go to. */
bool client_send(struct apachews_client *client, int first, const void *payload, size_t length);
/* The same with one that others get as well. */
bool client_send_frame(struct apachews_client *client, struct frame *frame);
/* Send or queue what is no message, in whatever state. */
bool client_write(struct apachews_client *client, int first, const void *payload, size_t length);
/* Send or queue a CLOSE, once; to a bridge that asks, that means no.  False where it is too
 * late; the code and reason have been looked at. */
bool client_send_close(struct apachews_client *client, int code, const char *reason);
/* Send or queue a MOVE, once; or refuse one that waits to be accepted. */
void client_send_move(struct apachews_client *client);

#endif
