/* A server: opening, the event loop, freeing. */
#include "system.h"

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "accept.h"
#include "connection.h"
#include "error.h"
#include "lanes.h"
#include "notify.h"
#include "receive.h"

#define DEFAULT_MAX_MESSAGE (16u * 1024 * 1024)
#define DEFAULT_MAX_QUEUE (4u * 1024 * 1024)
/* How often apachews_server_next() polls again after its deadline, if work without an event
 * (accepting, a part of a message) was ready each time. */
#define MAX_LATE_POLLS 8

const char *apachews_version(void)
{
    return APACHEWS_VERSION;
}

/* ---- Opening ---- */

static bool open_epoll(apachews_server *server)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &server->wake_fd};
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->wake_fd = server->epoll_fd >= 0 ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
    return server->wake_fd >= 0 &&
           epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->wake_fd, &event) == 0;
}

/* Free a server without clients. */
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

static apachews_server *fail_open(apachews_server *server, const char *path, apachews_error *error)
{
    int number = errno;
    free_server(server);
    error_set(error, APACHEWS_SYSTEM_ERROR, number, "%.200s: cannot watch the socket: %s", path,
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
        error_set(error, APACHEWS_SYSTEM_ERROR, ENOMEM, "out of memory for a server");
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
    /* Before the socket file: taking over the path from another producer cannot be undone. */
    if (!open_epoll(server)) {
        return fail_open(server, path, error);
    }
    if (!socket_file_open(&server->file, path, options, error)) {
        free_server(server);
        return NULL;
    }
    if (!accept_start(server)) {
        return fail_open(server, path, error);
    }
    server->is_announced = true;
    notify_ready(path);
    return server;
}

/* ---- Deadlines ---- */

static int64_t earlier(int64_t one, int64_t other)
{
    return one < other ? one : other;
}

/* Return the earliest deadline (of closing handshakes, draining, a pause in accepting) in
 * milliseconds of clock_ms(), or INT64_MAX. */
static int64_t next_deadline(const apachews_server *server)
{
    int64_t next = INT64_MAX;
    if (server->closing_first != NULL) {
        next = server->closing_first->deadline_ms;
    }
    /* Without clients draining ends by is_drained(), not by its deadline. */
    if (server->is_draining && !server->is_stopped && server->first != NULL) {
        next = earlier(next, server->drain_deadline_ms);
    }
    if (server->accept_resume_ms != 0) {
        next = earlier(next, server->accept_resume_ms);
    }
    return next;
}

/* Act on the deadlines that have passed. */
static void run_timers(apachews_server *server)
{
    int64_t now = clock_ms();
    while (server->closing_first != NULL && server->closing_first->deadline_ms <= now) {
        struct apachews_client *client = server->closing_first;
        connection_end(client, WIRE_ABNORMAL, "the close was not answered in time");
        connection_remove(client);
    }
    if (server->is_draining && !server->is_stopped && server->drain_deadline_ms <= now) {
        accept_stop(server);
        connections_abandon(server, WIRE_SERVICE_RESTART,
                            "left to another producer: it took too long");
    }
    accept_resume(server, now);
}

/* ---- Events ---- */

/* Release what the last event pointed to: the program is done with it. */
static void finish_event(apachews_server *server)
{
    free(server->delivered_data);
    server->delivered_data = NULL;
    if (server->delivered != NULL) {
        connection_finish_move(server->delivered);
        apachews_client_release(server->delivered);
        server->delivered = NULL;
    }
}

static void deliver_close_event(apachews_server *server, apachews_event *event)
{
    struct apachews_client *client = server->ended_first;
    server->ended_first = client->ended_next;
    if (server->ended_first == NULL) {
        server->ended_last = NULL;
    }
    client->ended_next = NULL;
    server->delivered = client;
    if (client->state == MOVED) {
        /* A program that closes its client on a close event must not send a CLOSE to a client
         * that has moved; it can still send messages. */
        client->state = PARTING;
    }
    bool is_client = client->request != NULL;
    *event = (apachews_event){
        .kind = is_client ? APACHEWS_CLOSE : APACHEWS_INVALID,
        .client = is_client ? client : NULL,
        .code = client->close_code,
        .reason = client->close_reason,
    };
}

static void deliver_accept_error(apachews_server *server, apachews_event *event)
{
    int number = server->accept_error;
    server->accept_error = 0;
    snprintf(server->text, sizeof server->text, "cannot %s: %s",
             server->is_stopped ? "wait for clients, the server has stopped" : "accept a client",
             strerror(number));
    *event = (apachews_event){.kind = APACHEWS_ERROR, .code = number, .reason = server->text};
}

/* Handle a file descriptor that epoll_wait() reported. */
static void dispatch(apachews_server *server, const struct epoll_event *ready)
{
    if (ready->data.ptr == &server->file) {
        accept_clients(server);
    } else if (ready->data.ptr == &server->wake_fd) {
        uint64_t count;
        server->was_woken = read(server->wake_fd, &count, sizeof count) == sizeof count;
    } else {
        enum watched *watched = ready->data.ptr;
        if (*watched == WATCHED_CHANNEL) {
            lanes_ready(ready->data.ptr, ready->events);
        } else {
            receive_ready(ready->data.ptr, ready->events);
        }
    }
}

/* Deliver the next event that needs no new epoll_wait(); return whether there was one. */
static bool deliver_event(apachews_server *server, apachews_event *event)
{
    for (;;) {
        /* Close events first: a client that ended must not have to wait for busy ones. */
        if (server->ended_first != NULL) {
            deliver_close_event(server, event);
            return true;
        }
        if (server->accept_error != 0) {
            deliver_accept_error(server, event);
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
        if (receive_next_event(server, event)) {
            return true;
        }
        if (server->ended_first == NULL) {
            if (server->ready_at < server->ready_count) {
                dispatch(server, &server->ready[server->ready_at++]);
            } else if (server->waiting_turns > 0) {
                server->waiting_turns--;
                receive_resume(server);
            } else {
                return false;
            }
        }
    }
}

/* Return whether draining is complete; stop the server if it is. */
static bool is_drained(apachews_server *server)
{
    if (!server->is_draining || server->first != NULL) {
        return false;
    }
    /* Clients that connected before the file was removed may still be in the backlog. */
    accept_clients(server);
    if (server->first != NULL || server->accept_error != 0) {
        return false;
    }
    accept_stop(server);
    lanes_close_all(server);
    server->is_stopped = true;
    return true;
}

/* Wait for file descriptors until a deadline; return the result of epoll_wait(). */
static int poll_sockets(apachews_server *server, int64_t deadline)
{
    int64_t until = earlier(next_deadline(server), deadline);
    int64_t now = clock_ms();
    int64_t wait = until == INT64_MAX ? -1 : until <= now ? 0 : until - now;
    if (server->waiting_first != NULL) {
        wait = 0; /* unread bytes in memory do not make a socket readable */
    }
    int count = epoll_wait(server->epoll_fd, server->ready, READY_MAX,
                           wait > INT_MAX ? INT_MAX : (int)wait);
    server->ready_at = 0;
    server->ready_count = count > 0 ? count : 0;
    server->waiting_turns = server->waiting_count;
    if (count < 0 && errno == EINTR) {
        /* A signal handler ran: the program may want to act on it. */
        server->was_woken = true;
    } else if (count < 0) {
        /* The program closed the descriptor of epoll: the loop cannot continue. */
        server->accept_error = errno;
        apachews_server_stop(server);
    }
    return count;
}

bool apachews_server_next(apachews_server *server, int timeout_ms, apachews_event *event)
{
    finish_event(server);
    int64_t deadline = timeout_ms < 0 ? INT64_MAX : clock_ms() + timeout_ms;
    bool is_late = false;
    int polls = 0;
    for (;;) {
        if (deliver_event(server, event)) {
            return true;
        }
        lanes_end_failed(server);
        connections_free_deferred(server);
        if (server->is_stopped || is_drained(server)) {
            *event = (apachews_event){.kind = APACHEWS_TIMEOUT, .reason = ""};
            return false;
        }
        run_timers(server);
        if (server->ended_first != NULL || server->deferred != NULL || server->has_bridge_to_end) {
            continue;
        }
        if (is_late) {
            *event = (apachews_event){.kind = APACHEWS_TIMEOUT, .reason = ""};
            return true;
        }
        int count = poll_sockets(server, deadline);
        is_late = clock_ms() >= deadline && (count == 0 || ++polls == MAX_LATE_POLLS);
    }
}

void apachews_server_wake(apachews_server *server)
{
    int number = errno; /* preserved: signal handlers call this */
    uint64_t one = 1;
    ssize_t written = write(server->wake_fd, &one, sizeof one);
    (void)written; /* EAGAIN: the counter is full, so the descriptor is readable anyway */
    errno = number;
}

int apachews_server_fd(const apachews_server *server)
{
    return server->epoll_fd;
}

int apachews_server_timeout(const apachews_server *server)
{
    if (server->ended_first != NULL || server->accept_error != 0 || server->was_woken ||
        server->current != NULL || server->ready_at < server->ready_count ||
        server->waiting_first != NULL || server->delivered != NULL || server->is_stopped ||
        server->has_bridge_to_end ||
        (server->is_draining && server->first == NULL)) {
        return 0;
    }
    int64_t next = next_deadline(server);
    if (next == INT64_MAX) {
        return -1;
    }
    int64_t wait = next - clock_ms();
    return wait < 0 ? 0 : wait > INT_MAX ? INT_MAX : (int)wait;
}

void apachews_server_free(apachews_server *server)
{
    if (server == NULL) {
        return;
    }
    apachews_server_stop(server);
    finish_event(server);
    while (server->ended_first != NULL) {
        apachews_event event;
        deliver_close_event(server, &event);
        finish_event(server);
    }
    while (server->waiting_first != NULL) {
        receive_resume(server); /* releases the reference; no turn starts without a socket */
    }
    connections_free_deferred(server);
    lanes_close_all(server);
    free_server(server);
}

size_t apachews_server_clients(apachews_server *server, apachews_client **clients,
                               size_t capacity)
{
    size_t count = 0;
    for (struct apachews_client *client = server->first; client != NULL; client = client->next) {
        if (connection_is_sending(client) && client->state != PARTING) {
            if (count < capacity) {
                clients[count] = client;
            }
            count++;
        }
    }
    return count;
}
