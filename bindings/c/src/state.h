/* The state of a server and of its connections: data only.
 *
 * Contract: the files of the server loop (groups.c to server.c, original.c) share these
 * structures, on the thread of the server.  Only connection.c links and unlinks connections.
 *
 * Lifetime of a connection: a reference count.  The server's list holds one reference, a queued
 * close event holds one until the event is over, and each apachews_client_keep() holds one.  The
 * last release frees the structure; its file descriptor, queue and reader are freed earlier, when
 * it leaves the list.
 */
#ifndef APACHEWS_STATE_H
#define APACHEWS_STATE_H

#include <stdint.h>
#include <sys/epoll.h>

#include "apachews.h"
#include "queue.h"
#include "socket_file.h"
#include "wire.h"

/* Bytes of one read from a socket: a third of what Linux buffers for a Unix socket. */
#define READ_BYTES 65536
/* File descriptors that one call of epoll_wait() reports. */
#define READY_MAX 256

/* The state of a connection; transitions only go down this list. */
enum state {
    CONNECTING, /* before OPEN */
    PUBLISHING, /* a publisher, not a client: it sends messages for clients */
    ASKED,      /* the bridge waits for an ANSWER */
    OPEN,       /* messages flow */
    MOVING,     /* messages flow; MOVE is sent or queued, the bridge's MOVE is awaited */
    MOVED,      /* the bridge's MOVE is read, the close event is queued */
    PARTING,    /* the program has the close event: it can still send */
    CLOSING,    /* CLOSE is sent or queued, the answer is awaited; messages are ignored */
    CLOSED      /* the close event is queued or delivered; only the queue is still sent */
};

/* The lane of a client's messages; channel.h explains it. */
enum lane {
    LANE_OWN,     /* its own connection */
    LANE_JOINING, /* its own connection; JOIN was sent last */
    LANE_STALE,   /* its own connection; a message has followed the JOIN, whose READY is void */
    LANE_CHANNEL
};

/* What a pointer of epoll refers to: the first member of both structures. */
enum watched { WATCHED_CLIENT, WATCHED_CHANNEL };

/* A bridge process, and the channel to it. */
struct bridge {
    enum watched watched;
    apachews_server *server;
    struct bridge *next;   /* all bridge processes */
    size_t references;     /* clients that can go on its channel */
    int fd;                /* of the channel; -1: not open */
    uint32_t interest;     /* the current epoll events */
    uint32_t key;          /* of its OFFER, for JOIN */
    uint32_t last_number;  /* of a client */
    uint32_t last_group;
    bool is_lost;          /* the channel has ended: another one is not asked for */
    bool has_failed;       /* memory ran out for a frame: the channel ends before the next poll */
    bool is_served;        /* the current broadcast has gone on this channel */
    int64_t asked_at_ms;   /* the last ASK; 0: never */
    void *numbers;         /* a tree of tsearch(3): clients whose lane is not LANE_OWN */
    size_t client_count;   /* those with LANE_CHANNEL */
    struct queue queue;
    unsigned char *rest;   /* the beginning of a frame; or NULL */
    size_t rest_size;
    char id[];
};

/* A group on a channel; it exists as long as it has a member there. */
struct channel_group {
    struct bridge *bridge;
    struct channel_group *next; /* the same group on other channels */
    uint32_t number;
    size_t count;               /* members that are on the channel */
    struct membership *added;   /* members that the next ADD names */
    struct channel_group *added_next;
};

struct group {
    const char *name;
    struct membership *first, *last; /* in the order of joining */
    struct channel_group *channels;
    char storage[];
};

struct membership {
    struct apachews_client *client;
    struct group *group;
    struct membership *previous, *next;  /* of the group */
    struct membership *of_client;        /* the next membership of the client */
    struct channel_group *channel_group; /* if the client is on a channel; else NULL */
    struct membership *added_next;
};

struct apachews_client {
    enum watched watched;
    apachews_server *server; /* dangling once fd is -1: the server may be freed */
    size_t references;
    int fd;       /* -1 once the connection is removed */
    int number;   /* the number of fd, also after fd is -1 */
    bool keeps_fd; /* the socket is shut down, and closed when the structure is freed */
    enum state state;
    uint32_t interest; /* the current epoll events */
    bool has_moved;    /* the bridge's MOVE is read: the bridge sends nothing more */
    bool was_rejected;
    bool sends_binary; /* the type of its last message */
    struct wire_reader reader;
    unsigned char *unread; /* bytes that its last turn left, referenced by reader; or NULL */
    struct queue queue;
    struct request *request; /* NULL before OPEN */
    void *data;
    char *publishes_to; /* PUBLISHING: the group; NULL for all clients */
    char *language;     /* cached by original.c */
    struct membership *memberships;
    struct bridge *bridge; /* its process, if the client can go on a channel; or NULL */
    enum lane lane;
    uint32_t lane_number;  /* on the channel, or in the last JOIN */
    bool expects_channel;  /* ASK was sent: a descriptor can arrive */
    int offered_fd;        /* the descriptor that has arrived, or -1 */
    unsigned char ping[8]; /* payload of the last PING */
    int64_t pinged_at_ns;  /* 0: no PONG is awaited */
    int64_t deadline_ms;   /* of the closing handshake; 0: not closing */
    int close_code;        /* of its close event */
    char close_reason[WIRE_MAX_CONTROL + 3];
    struct apachews_client *previous, *next;                 /* all connections */
    struct apachews_client *closing_previous, *closing_next; /* by deadline_ms */
    struct apachews_client *ended_next;                      /* with a queued close event */
    struct apachews_client *deferred_next;                   /* to release between two polls */
    struct apachews_client *waiting_next;                    /* with unread bytes */
};

struct apachews_server {
    struct socket_file file;
    int epoll_fd;
    int wake_fd;
    uint64_t max_message_bytes;
    size_t max_queue_bytes;
    struct apachews_client *first, *last; /* all connections, the oldest first */
    struct apachews_client *closing_first, *closing_last;
    struct apachews_client *ended_first, *ended_last;
    struct apachews_client *deferred; /* removed, but ready[] may still refer to them */
    struct apachews_client *current;  /* the connection whose turn it is */
    int turn_items;                   /* items that this turn has processed */
    struct apachews_client *waiting_first, *waiting_last; /* the longest wait first */
    size_t waiting_count;
    size_t waiting_turns;                /* turns of waiting connections left in this round */
    struct apachews_client *delivered;   /* the connection whose close event the program has */
    unsigned char *delivered_data;       /* the message that the program has */
    void *groups;                        /* a tree of tsearch(3) */
    struct bridge *bridges;
    bool has_bridge_to_end;              /* a channel has failed, or a process has no use */
    struct epoll_event ready[READY_MAX]; /* reported by epoll_wait(), from ready_at on unhandled */
    int ready_count;
    int ready_at;
    bool keeps_fds; /* an fd number is not reused while its client exists (original.c) */
    bool is_accepting;
    bool is_stopped;
    bool is_draining;
    bool is_announced; /* systemd was sent READY */
    bool was_woken;
    int accept_error;          /* errno for the next error event, or 0 */
    int64_t accept_resume_ms;  /* the end of a pause in accepting, or 0 */
    int64_t drain_deadline_ms; /* while is_draining */
    char text[160];            /* the reason of an error event */
    unsigned char buffer[READ_BYTES + 1];
};

#endif
