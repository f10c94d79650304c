#include "system.h"

#include "server.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "groups.h"
#include "notify.h"
#include "utf8.h"

#define DEFAULT_MAX_MESSAGE (16u * 1024 * 1024)
#define DEFAULT_MAX_QUEUE (4u * 1024 * 1024)
/* How long a client that is being closed may take to go; Apache's side gives the browser as
 * long (APACHEWS_CLOSE_TIMEOUT). */
#define CLOSE_TIMEOUT_MS 10000
/* How long stop waits for the last goodbyes to leave. */
#define FLUSH_TIMEOUT_MS 1000
/* How long accepting rests when the process has no descriptor left. */
#define ACCEPT_REST_MS 1000

/* When the time is over, and there is something to do that is no event yet (to accept, to read
 * a piece of a message), it is done so many times. */
#define LATE_LOOKS 8

#define GONE (EPOLLHUP | EPOLLERR)

int64_t server_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t clock_ms(void)
{
    return server_clock_ns() / 1000000;
}

const char *apachews_version(void)
{
    return APACHEWS_VERSION;
}

/* ---- Lists ---- */

static void add_to_list(apachews_server *server, struct apachews_client *client)
{
    client->previous = server->last;
    *(server->last ? &server->last->next : &server->first) = client;
    server->last = client;
}

static void remove_from_list(apachews_server *server, struct apachews_client *client)
{
    *(client->previous ? &client->previous->next : &server->first) = client->next;
    *(client->next ? &client->next->previous : &server->last) = client->previous;
    client->previous = client->next = NULL;
}

/* All have as long, so the list is in the order of their deadlines. */
static void begin_leaving(apachews_server *server, struct apachews_client *client)
{
    client->deadline_ms = clock_ms() + CLOSE_TIMEOUT_MS;
    client->leaving_previous = server->leaving_last;
    *(server->leaving_last ? &server->leaving_last->leaving_next : &server->leaving_first) = client;
    server->leaving_last = client;
}

static void end_leaving(apachews_server *server, struct apachews_client *client)
{
    if (client->deadline_ms == 0) {
        return;
    }
    *(client->leaving_previous ? &client->leaving_previous->leaving_next
                               : &server->leaving_first) = client->leaving_next;
    *(client->leaving_next ? &client->leaving_next->leaving_previous : &server->leaving_last) =
        client->leaving_previous;
}

/* ---- The life of a connection ---- */

static void forget(struct apachews_client *client)
{
    apachews_server *server = client->server;
    if (client->fd < 0) {
        return;
    }
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, client->fd, NULL);
    if (server->holds_numbers) {
        client->is_held = true;
        shutdown(client->fd, SHUT_RDWR);
    } else {
        close(client->fd);
    }
    client->fd = -1;
    client->state = CLOSED;
    queue_clear(&client->queue);
    wire_reader_free(&client->reader);
    groups_leave_all(client);
    end_leaving(server, client);
    remove_from_list(server, client);
    if (server->current == client) {
        server->current = NULL;
    }
    client->buried_next = server->buried;
    server->buried = client;
}

static void bury(apachews_server *server)
{
    while (server->buried != NULL) {
        struct apachews_client *client = server->buried;
        server->buried = client->buried_next;
        /* Not earlier: the program may have had a message that lies there. */
        free(client->unread);
        client->unread = NULL;
        apachews_client_release(client);
    }
}

static void queue_end(struct apachews_client *client, int code, const char *reason)
{
    apachews_server *server = client->server;
    client->end_code = code;
    size_t length = utf8_truncate(reason, strlen(reason), sizeof client->end_reason - 1);
    memcpy(client->end_reason, reason, length);
    client->end_reason[length] = '\0';
    apachews_client_keep(client);
    *(server->ended_last ? &server->ended_last->ended_next : &server->ended_first) = client;
    server->ended_last = client;
}

void server_end(struct apachews_client *client, int code, const char *reason)
{
    enum state before = client->state;
    client->state = CLOSED;
    /* (One that has moved had its last event then.) */
    if (before != MOVED && before != PARTING && before != CLOSED) {
        queue_end(client, code, reason);
    }
    groups_leave_all(client);
    server_update(client);
}

void server_update(struct apachews_client *client)
{
    apachews_server *server = client->server;
    if (client->fd < 0) {
        return;
    }
    if (client->state == CLOSED && client->queue.first == NULL) {
        forget(client);
        return;
    }
    if (client->deadline_ms == 0 && client->state >= CLOSING) {
        begin_leaving(server, client);
    }
    uint32_t mask = 0;
    if (client_wants_reading(client) && !server->is_stopped) {
        mask |= EPOLLIN;
    }
    if (client->queue.first != NULL) {
        mask |= EPOLLOUT;
    }
    if (mask != client->watched) {
        struct epoll_event watch = {.events = mask, .data.ptr = client};
        client->watched = mask;
        epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, client->fd, &watch);
    }
}

/* Let the client go that has moved: the program has had its say. */
static void part(struct apachews_client *client)
{
    if (client->state == PARTING) {
        client->state = CLOSED;
        groups_leave_all(client);
        server_update(client);
    }
}

/* End every connection that is left, without a word to it. */
static void leave(apachews_server *server, int code, const char *reason)
{
    while (server->first != NULL) {
        struct apachews_client *client = server->first;
        if (client->request != NULL && client->state != MOVED && client->state != PARTING) {
            server_end(client, code, reason);
        }
        forget(client);
    }
}

/* ---- Accepting ---- */

static bool watch_listener(apachews_server *server)
{
    /* Exclusive: a client that comes wakes one process of several, and not all of them. */
    struct epoll_event watch = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = &server->file};
    return epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->file.fd, &watch) == 0;
}

static void unwatch_listener(apachews_server *server)
{
    /* Closing would not do: other processes may hold the same socket. */
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, server->file.fd, NULL);
}

static void stop_accepting(apachews_server *server)
{
    if (server->is_accepting && server->accept_again_ms == 0) {
        unwatch_listener(server);
    }
    server->is_accepting = false;
    server->accept_again_ms = 0;
    socket_file_close(&server->file);
}

/* A listening socket that cannot be accepted from stays ready: to watch it on would turn the
 * loop into a spin. */
static void rest_from_accepting(apachews_server *server, int number)
{
    unwatch_listener(server);
    server->accept_again_ms = clock_ms() + ACCEPT_REST_MS;
    server->accept_error = number;
}

static bool add_client(apachews_server *server, int fd)
{
    struct apachews_client *client = calloc(1, sizeof *client);
    struct epoll_event watch = {.events = EPOLLIN, .data.ptr = client};
    if (client == NULL || epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &watch) != 0) {
        free(client);
        close(fd);
        return false;
    }
    client->server = server;
    client->holders = 1;
    client->fd = client->number = fd;
    client->watched = EPOLLIN;
    wire_reader_init(&client->reader, server->max_message_bytes);
    add_to_list(server, client);
    return true;
}

/* Let in who waits: all of them, but one at a time of those that others let in too. */
static void accept_clients(apachews_server *server)
{
    while (server->is_accepting && server->accept_again_ms == 0) {
        int fd = accept4(server->file.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            int number = errno;
            if (number == ECONNABORTED || number == EINTR) {
                continue;
            }
            if (number != EAGAIN && number != EWOULDBLOCK) {
                rest_from_accepting(server, number);
            }
            return;
        }
        if (!add_client(server, fd)) {
            rest_from_accepting(server, ENOMEM);
            return;
        }
        if (server->file.is_inherited && !server->is_draining) {
            /* To the end of the row of those who accept from the same socket: the kernel
             * wakes the first one in it that sleeps. */
            unwatch_listener(server);
            watch_listener(server);
            return;
        }
    }
}

/* ---- Sending to many ---- */

static apachews_delivery send_to_all(apachews_server *server, struct frame *frame,
                                     const apachews_client *except)
{
    apachews_delivery delivery = {0, 0};
    struct apachews_client *client = server->first;
    while (client != NULL) {
        struct apachews_client *next = client->next;
        if (client->request != NULL && client != except) {
            if (client_send_frame(client, frame)) {
                delivery.reached++;
            } else {
                delivery.skipped++;
            }
        }
        client = next;
    }
    return delivery;
}

static apachews_delivery deliver(apachews_server *server, const char *group, int type,
                                 const void *data, size_t length, const apachews_client *except)
{
    apachews_delivery delivery = {0, 0};
    struct frame *frame = frame_new(WIRE_FIN | type, data, length);
    if (frame == NULL) {
        errno = ENOMEM;
        return delivery;
    }
    delivery = group != NULL ? groups_send(server, group, frame, except)
                             : send_to_all(server, frame, except);
    frame_release(frame);
    errno = 0;
    return delivery;
}

apachews_delivery apachews_broadcast(apachews_server *server, apachews_type type,
                                     const void *data, size_t length)
{
    return apachews_group_send(server, NULL, type, data, length, NULL);
}

apachews_delivery apachews_group_send(apachews_server *server, const char *group,
                                      apachews_type type, const void *data, size_t length,
                                      const apachews_client *except)
{
    errno = client_check_message(type, data, length);
    if (errno != 0) {
        return (apachews_delivery){0, 0};
    }
    return deliver(server, group, (int)type, data, length, except);
}

/* Take a message that somebody publishes, and answer it. */
static void publish(struct apachews_client *publisher, const struct wire_item *item)
{
    char answer[96];
    int type = item->kind == WIRE_TEXT ? WIRE_OP_TEXT : WIRE_OP_BINARY;
    apachews_delivery delivery = deliver(publisher->server, publisher->publishes_to, type, item->data,
                                         item->length, NULL);
    int length = snprintf(answer, sizeof answer, "{\"version\":1,\"reached\":%zu,\"skipped\":%zu}",
                          delivery.reached, delivery.skipped);
    client_write(publisher, WIRE_FIN | WIRE_OP_PUBLISH, answer, (size_t)length);
}

/* ---- What comes ---- */

static void receive_eof(struct apachews_client *client)
{
    bool may_leave = client->state == CONNECTING || client->state == PUBLISHING;
    if (!may_leave || !wire_reader_is_idle(&client->reader)) {
        server_end(client, WIRE_ABNORMAL,
                   client->was_rejected ? "it was refused" : "the connection broke off");
    }
    /* Otherwise somebody looked whether a producer listens, and left. */
    forget(client);
}

static void receive_move(struct apachews_client *client)
{
    client->has_moved = true;
    if (client_is_receiving(client)) {
        client->state = MOVED;
        queue_end(client, WIRE_SERVICE_RESTART, "moved to another producer");
        server_update(client);
    } else if (client->state == CLOSING) {
        server_end(client, WIRE_ABNORMAL, "the close came too late to be answered");
    } else {
        server_update(client);
    }
}

static void refuse(struct apachews_client *client, const struct wire_item *item)
{
    if (client_is_receiving(client)) {
        size_t length = utf8_truncate(item->text, strlen(item->text), WIRE_MAX_REASON);
        char reason[WIRE_MAX_REASON + 1];
        memcpy(reason, item->text, length);
        reason[length] = '\0';
        queue_drop(&client->queue);
        client_send_close(client, item->code, reason);
    }
    server_end(client, item->code, item->text);
}

static bool receive_open(struct apachews_client *client, struct wire_item *item,
                         apachews_event *event)
{
    client->request = item->request;
    client->state = item->request->facts.answer_required ? ASKED : OPEN;
    *event = (apachews_event){.kind = APACHEWS_OPEN, .client = client, .reason = ""};
    if (client->server->is_draining) {
        client_send_move(client);
    }
    return true;
}

static bool receive_message(struct apachews_client *client, const struct wire_item *item,
                            apachews_event *event)
{
    if (client->state == PUBLISHING) {
        publish(client, item);
    }
    if (!client_is_receiving(client)) {
        free(item->owned);
        return false;
    }
    client->server->held = item->owned;
    client->sends_binary = item->kind == WIRE_BINARY;
    *event = (apachews_event){
        .kind = APACHEWS_MESSAGE,
        .type = item->kind == WIRE_TEXT ? APACHEWS_TEXT : APACHEWS_BINARY,
        .client = client,
        .data = (const char *)item->data,
        .length = item->length,
        .reason = "",
    };
    return true;
}

static bool receive_pong(struct apachews_client *client, const struct wire_item *item,
                         apachews_event *event)
{
    if (client->pinged_at_ns == 0 || item->length != sizeof client->ping ||
        memcmp(item->data, client->ping, sizeof client->ping) != 0 ||
        !client_is_receiving(client)) {
        return false;
    }
    *event = (apachews_event){
        .kind = APACHEWS_PONG,
        .client = client,
        .reason = "",
        .latency_s = (double)(server_clock_ns() - client->pinged_at_ns) / 1e9,
    };
    client->pinged_at_ns = 0;
    return true;
}

/* Do what an item says; return whether it is an event. */
static bool receive(struct apachews_client *client, struct wire_item *item, apachews_event *event)
{
    switch (item->kind) {
    case WIRE_TEXT:
    case WIRE_BINARY:
        return receive_message(client, item, event);
    case WIRE_OPEN:
        return receive_open(client, item, event);
    case WIRE_PONG:
        return receive_pong(client, item, event);
    case WIRE_PUBLISH:
        client->state = PUBLISHING;
        client->publishes_to = item->group;
        return false;
    case WIRE_CLOSE:
        if (client->state == PUBLISHING) {
            forget(client);
        } else {
            queue_drop(&client->queue);
            server_end(client, item->code, item->text);
        }
        return false;
    case WIRE_MOVE:
        receive_move(client);
        return false;
    default:
        refuse(client, item);
        free(item->owned);
        return false;
    }
}

static void begin_turn(struct apachews_client *client)
{
    client->server->current = client;
    client->server->turn_items = 0;
}

static void add_to_waiting(apachews_server *server, struct apachews_client *client)
{
    apachews_client_keep(client);
    client->waiting_next = NULL;
    *(server->waiting_last ? &server->waiting_last->waiting_next : &server->waiting_first) = client;
    server->waiting_last = client;
    server->waiting_count++;
}

/* Give the client that waits longest its turn, unless it is gone. */
static void resume_waiting(apachews_server *server)
{
    struct apachews_client *client = server->waiting_first;
    server->waiting_first = client->waiting_next;
    if (server->waiting_first == NULL) {
        server->waiting_last = NULL;
    }
    server->waiting_count--;
    if (client->fd >= 0) {
        begin_turn(client);
    }
    apachews_client_release(client);
}

/* End a turn after TURN_ITEMS: the client waits with what is left of its read.  The turn goes on
 * if nothing is left (wire_reader_next() then returns WIRE_NOTHING and ends it), or if there is no
 * memory for the rest. */
static void end_turn(apachews_server *server, struct apachews_client *client)
{
    server->turn_items = 0;
    size_t size = wire_reader_unread(&client->reader);
    if (size == 0) {
        return;
    }
    if (client->unread == NULL) {
        client->unread = malloc(size + 1);
        if (client->unread == NULL) {
            return;
        }
        wire_reader_move(&client->reader, client->unread);
    }
    server->current = NULL;
    add_to_waiting(server, client);
}

/* Go on with the turn of the current client; return whether there is an event. */
static bool receive_on(apachews_server *server, apachews_event *event)
{
    while (server->current != NULL) {
        struct apachews_client *client = server->current;
        struct wire_item item;
        if (server->turn_items++ == TURN_ITEMS) {
            end_turn(server, client);
            continue;
        }
        wire_reader_next(&client->reader, &item);
        if (item.kind == WIRE_NOTHING) {
            server->current = NULL;
            free(client->unread);
            client->unread = NULL;
        } else if (receive(client, &item, event)) {
            return true;
        }
    }
    return false;
}

static void read_client(struct apachews_client *client)
{
    apachews_server *server = client->server;
    ssize_t size;
    do {
        size = recv(client->fd, server->buffer, READ_BYTES, 0);
    } while (size < 0 && errno == EINTR);
    if (size > 0) {
        wire_reader_feed(&client->reader, server->buffer, (size_t)size);
        begin_turn(client);
    } else if (size == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) {
        receive_eof(client);
    }
}

/* Do what a descriptor is ready for. */
static void serve(apachews_server *server, const struct epoll_event *ready)
{
    struct apachews_client *client = ready->data.ptr;
    if (ready->data.ptr == &server->file) {
        accept_clients(server);
        return;
    }
    if (ready->data.ptr == &server->wake_fd) {
        uint64_t count;
        server->was_woken = read(server->wake_fd, &count, sizeof count) == sizeof count;
        return;
    }
    if (client->fd >= 0 && (ready->events & EPOLLOUT)) {
        queue_flush(&client->queue, client->fd);
        server_update(client);
    }
    if (client->fd >= 0 && (ready->events & (EPOLLIN | GONE))) {
        if (client->unread != NULL) {
            return; /* it waits for its turn, and stays ready */
        }
        if (!client->has_moved) {
            read_client(client);
        } else if (ready->events & GONE) {
            receive_eof(client); /* its last event is out, but where nobody had asked it to move */
        }
    }
}

/* ---- Time ---- */

/* Do what is due; return when the next is, or -1. */
static int64_t run_timers(apachews_server *server)
{
    int64_t now = clock_ms();
    int64_t next = -1;
    while (server->leaving_first != NULL && server->leaving_first->deadline_ms <= now) {
        struct apachews_client *client = server->leaving_first;
        server_end(client, WIRE_ABNORMAL, "the close was not answered in time");
        forget(client);
    }
    if (server->leaving_first != NULL) {
        next = server->leaving_first->deadline_ms;
    }
    if (server->is_draining && !server->is_stopped) {
        if (server->drain_deadline_ms <= now) {
            stop_accepting(server);
            leave(server, WIRE_SERVICE_RESTART, "left to another producer: it took too long");
        } else if (next < 0 || server->drain_deadline_ms < next) {
            next = server->drain_deadline_ms;
        }
    }
    if (server->accept_again_ms != 0) {
        if (server->accept_again_ms <= now) {
            server->accept_again_ms = 0;
            watch_listener(server);
        } else if (next < 0 || server->accept_again_ms < next) {
            next = server->accept_again_ms;
        }
    }
    return next;
}

/* ---- The program's side ---- */

static bool open_epoll(apachews_server *server)
{
    struct epoll_event watch = {.events = EPOLLIN, .data.ptr = &server->wake_fd};
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->wake_fd = server->epoll_fd >= 0 ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
    return server->wake_fd >= 0 &&
           epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->wake_fd, &watch) == 0;
}

/* Give back a server that has no client. */
static void free_server(apachews_server *server)
{
    socket_file_close(&server->file);
    if (server->epoll_fd >= 0) {
        close(server->epoll_fd);
    }
    if (server->wake_fd >= 0) {
        close(server->wake_fd);
    }
    free(server);
}

static apachews_server *give_up(apachews_server *server, const char *path, apachews_error *error)
{
    int number = errno;
    free_server(server);
    error_set(error, APACHEWS_SYSTEM_ERROR, number, "%.200s: cannot watch it: %s", path,
              strerror(number));
    return NULL;
}

apachews_server *apachews_server_open(const char *path, const apachews_options *options,
                                      apachews_error *error)
{
    static const apachews_options defaults;
    if (options == NULL) {
        options = &defaults;
    }
    error_set(error, APACHEWS_NO_ERROR, 0, "%s", "");
    apachews_server *server = calloc(1, sizeof *server);
    if (server == NULL) {
        error_set(error, APACHEWS_SYSTEM_ERROR, ENOMEM, "no memory for a server");
        return NULL;
    }
    server->file.fd = server->file.directory_fd = server->epoll_fd = server->wake_fd = -1;
    server->max_message_bytes =
        options->max_message_bytes ? options->max_message_bytes : DEFAULT_MAX_MESSAGE;
    if (server->max_message_bytes > PTRDIFF_MAX) {
        server->max_message_bytes = PTRDIFF_MAX;
    }
    server->max_queue_bytes =
        options->max_queue_bytes ? options->max_queue_bytes : DEFAULT_MAX_QUEUE;
    /* First what may fail: once the path is taken over from another producer there is no way
     * back. */
    if (!open_epoll(server)) {
        return give_up(server, path, error);
    }
    if (!socket_file_open(&server->file, path, options, error)) {
        free_server(server);
        return NULL;
    }
    server->is_accepting = true;
    if (!watch_listener(server)) {
        return give_up(server, path, error);
    }
    server->is_announced = true;
    notify_ready(path);
    return server;
}

/* The program has come back: what it had in hand is over. */
static void let_go(apachews_server *server)
{
    free(server->held);
    server->held = NULL;
    if (server->in_hand != NULL) {
        part(server->in_hand);
        apachews_client_release(server->in_hand);
        server->in_hand = NULL;
    }
}

static void take_ended(apachews_server *server, apachews_event *event)
{
    struct apachews_client *client = server->ended_first;
    server->ended_first = client->ended_next;
    if (server->ended_first == NULL) {
        server->ended_last = NULL;
    }
    client->ended_next = NULL;
    server->in_hand = client;
    if (client->state == MOVED) {
        /* From here on closing it does nothing, as with any client that is gone. */
        client->state = PARTING;
    }
    bool is_client = client->request != NULL;
    *event = (apachews_event){
        .kind = is_client ? APACHEWS_CLOSE : APACHEWS_INVALID,
        .client = is_client ? client : NULL,
        .code = client->end_code,
        .reason = client->end_reason,
    };
}

static void tell_of_accept_error(apachews_server *server, apachews_event *event)
{
    int number = server->accept_error;
    server->accept_error = 0;
    snprintf(server->text, sizeof server->text, "cannot %s: %s",
             server->is_stopped ? "wait for clients, and has stopped" : "accept a client",
             strerror(number));
    *event = (apachews_event){.kind = APACHEWS_ERROR, .code = number, .reason = server->text};
}

/* Take an event that is there without looking at the sockets again. */
static bool take_event(apachews_server *server, apachews_event *event)
{
    for (;;) {
        if (server->ended_first != NULL) {
            take_ended(server, event);
            return true;
        }
        if (server->accept_error != 0) {
            tell_of_accept_error(server, event);
            return true;
        }
        if (server->was_woken) {
            server->was_woken = false;
            *event = (apachews_event){.kind = APACHEWS_WAKE, .reason = ""};
            return true;
        }
        if (server->is_stopped) {
            return false;
        }
        if (receive_on(server, event)) {
            return true;
        }
        if (server->ended_first == NULL) {
            if (server->ready_at < server->ready_count) {
                serve(server, &server->ready[server->ready_at++]);
            } else if (server->waiting_turns > 0) {
                server->waiting_turns--;
                resume_waiting(server);
            } else {
                return false;
            }
        }
    }
}

/* Return whether drain is through, and end the server where it is. */
static bool is_drained(apachews_server *server)
{
    if (!server->is_draining || server->first != NULL) {
        return false;
    }
    accept_clients(server); /* a last look */
    if (server->first != NULL || server->accept_error != 0) {
        return false;
    }
    stop_accepting(server);
    server->is_stopped = true;
    return true;
}

bool apachews_server_next(apachews_server *server, int timeout_ms, apachews_event *event)
{
    let_go(server);
    int64_t deadline = timeout_ms < 0 ? INT64_MAX : clock_ms() + timeout_ms;
    bool is_late = false;
    int looks = 0;
    for (;;) {
        if (take_event(server, event)) {
            return true;
        }
        bury(server);
        if (server->is_stopped || is_drained(server)) {
            *event = (apachews_event){.kind = APACHEWS_TIMEOUT, .reason = ""};
            return false;
        }
        int64_t timer = run_timers(server);
        if (server->ended_first != NULL || server->buried != NULL) {
            continue;
        }
        int64_t now = clock_ms();
        if (is_late) {
            *event = (apachews_event){.kind = APACHEWS_TIMEOUT, .reason = ""};
            return true;
        }
        int64_t until = timer >= 0 && timer < deadline ? timer : deadline;
        int64_t wait = until == INT64_MAX ? -1 : until <= now ? 0 : until - now;
        if (server->waiting_first != NULL) {
            wait = 0;
        }
        int count = epoll_wait(server->epoll_fd, server->ready, READY_MAX,
                               wait > INT_MAX ? INT_MAX : (int)wait);
        server->ready_at = 0;
        server->ready_count = count > 0 ? count : 0;
        server->waiting_turns = server->waiting_count;
        if (count < 0 && errno == EINTR) {
            server->was_woken = true;
        } else if (count < 0) {
            /* The program has closed a descriptor that is not its own. */
            server->accept_error = errno;
            apachews_server_stop(server);
        }
        is_late = clock_ms() >= deadline && (count == 0 || ++looks == LATE_LOOKS);
    }
}

void apachews_server_wake(apachews_server *server)
{
    int number = errno;
    uint64_t one = 1;
    ssize_t written = write(server->wake_fd, &one, sizeof one);
    (void)written; /* where it is full it wakes up anyway */
    errno = number;
}

int apachews_server_fd(const apachews_server *server)
{
    return server->epoll_fd;
}

int apachews_server_timeout(const apachews_server *server)
{
    int64_t next = -1;
    if (server->ended_first != NULL || server->accept_error != 0 || server->was_woken ||
        server->current != NULL || server->ready_at < server->ready_count ||
        server->waiting_first != NULL ||
        server->in_hand != NULL || server->is_stopped ||
        (server->is_draining && server->first == NULL)) {
        return 0;
    }
    if (server->leaving_first != NULL) {
        next = server->leaving_first->deadline_ms;
    }
    if (server->is_draining && (next < 0 || server->drain_deadline_ms < next)) {
        next = server->drain_deadline_ms;
    }
    if (server->accept_again_ms != 0 && (next < 0 || server->accept_again_ms < next)) {
        next = server->accept_again_ms;
    }
    if (next < 0) {
        return -1;
    }
    int64_t wait = next - clock_ms();
    return wait < 0 ? 0 : wait > INT_MAX ? INT_MAX : (int)wait;
}

static void announce_end(apachews_server *server)
{
    if (server->is_announced) {
        server->is_announced = false;
        notify_stopping();
    }
}

void apachews_server_drain(apachews_server *server, int timeout_ms)
{
    if (server->is_stopped || server->is_draining) {
        return;
    }
    server->is_draining = true;
    server->drain_deadline_ms = clock_ms() + (timeout_ms > 0 ? timeout_ms : 0);
    announce_end(server);
    socket_file_remove(&server->file);
    accept_clients(server);
    if (server->file.is_inherited) {
        /* Others go on accepting; what comes from here on is theirs. */
        stop_accepting(server);
    }
    struct apachews_client *client = server->first;
    while (client != NULL) {
        struct apachews_client *next = client->next;
        if (client->state == PUBLISHING) {
            forget(client); /* it has to do with whoever listens next */
        } else {
            client_send_move(client);
        }
        client = next;
    }
}

/* Wait until one of those for whom something waits takes more; false where there is none, or
 * no memory to ask. */
static bool wait_for_room(apachews_server *server, int wait_ms)
{
    nfds_t count = 0;
    struct apachews_client *client;
    for (client = server->first; client != NULL; client = client->next) {
        count += client->queue.first != NULL;
    }
    struct pollfd *watched = count > 0 ? calloc(count, sizeof *watched) : NULL;
    if (watched == NULL) {
        return false;
    }
    count = 0;
    for (client = server->first; client != NULL; client = client->next) {
        if (client->queue.first != NULL) {
            watched[count++] = (struct pollfd){.fd = client->fd, .events = POLLOUT};
        }
    }
    int ready = poll(watched, count, wait_ms);
    free(watched);
    return ready > 0 || (ready < 0 && errno == EINTR);
}

/* Have the last goodbyes leave. */
static void flush_all(apachews_server *server)
{
    int64_t deadline = clock_ms() + FLUSH_TIMEOUT_MS;
    int64_t wait = FLUSH_TIMEOUT_MS;
    while (wait > 0 && wait_for_room(server, (int)wait)) {
        for (struct apachews_client *client = server->first; client != NULL;
             client = client->next) {
            queue_flush(&client->queue, client->fd);
        }
        wait = deadline - clock_ms();
    }
}

void apachews_server_stop(apachews_server *server)
{
    if (server->is_stopped) {
        return;
    }
    if (server->in_hand != NULL) {
        part(server->in_hand);
    }
    announce_end(server);
    stop_accepting(server);
    server->is_stopped = true;
    struct apachews_client *client = server->first;
    while (client != NULL) {
        struct apachews_client *next = client->next;
        client_send_close(client, WIRE_GOING_AWAY, "the server closes");
        client = next;
    }
    flush_all(server);
    leave(server, WIRE_GOING_AWAY, "the server closed");
    server->ready_at = server->ready_count = 0;
}

void apachews_server_free(apachews_server *server)
{
    if (server == NULL) {
        return;
    }
    apachews_server_stop(server);
    let_go(server);
    while (server->ended_first != NULL) {
        apachews_event event;
        take_ended(server, &event);
        let_go(server);
    }
    while (server->waiting_first != NULL) {
        resume_waiting(server); /* none has its turn: all are gone */
    }
    bury(server);
    free_server(server);
}

size_t apachews_server_clients(apachews_server *server, apachews_client **clients,
                               size_t capacity)
{
    size_t count = 0;
    for (struct apachews_client *client = server->first; client != NULL; client = client->next) {
        if (client_is_sending(client) && client->state != PARTING) {
            if (count < capacity) {
                clients[count] = client;
            }
            count++;
        }
    }
    return count;
}
