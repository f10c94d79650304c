/* The relay: TLS on one side, a plain stream socket on the other, for each client.
 *
 * Contract: see _tls_relay.h.  One thread.  ``relay_add`` reserves what a client needs, and
 * ``relay_start`` takes its SSL and its two sockets over; ``relay_withdraw`` instead gives them
 * back untouched.  ``relay_turn`` serves the clients that are ready; it allocates nothing, and
 * never calls Python.
 *
 * How this works: the other end of the plain socket belongs to a custodian, which treats it as
 * a client without TLS.  Bytes stay where they are until the other side takes them: a record is
 * peeked at (SSL_peek, MSG_PEEK), sent, and only as much as was taken is consumed.  So the
 * relay holds no bytes of its own, and each side's backpressure reaches the other one.
 *
 * Ends pass through:
 *
 * - the client's close_notify, FIN or reset: the custodian reads an end of file;
 * - the custodian's shutdown: close_notify and FIN to the client, whose last words still pass;
 * - a client that can no longer be written to: EPIPE for the custodian;
 * - a custodian that closed, or died: the client gets what was sent before, close_notify and FIN,
 *   and is closed after its own end, or after ORPHAN_MS.  What it still sends is discarded.  It is
 *   reset at once if the custodian has set SO_LINGER for that, and after ORPHAN_MS if it does not
 *   read.
 *
 * OpenSSL reads and writes the client's socket through a BIO of our own, whose buffers are
 * static: see _cold_memory.c.
 *
 * Sources: SSL_read(3), SSL_peek(3), SSL_write(3), SSL_get_error(3), BIO_meth_new(3), epoll(7),
 * unix(7).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "_tls_relay.h"

#define RECORD_BYTES 16384
#define EVENTS 64
/* Records for one client in one turn, so that a fast one does not keep the others waiting. */
#define RECORDS_A_TURN 8
/* How long a client whose custodian has gone may take to read the rest and to end. */
#ifndef ORPHAN_MS /* a test has less patience */
#define ORPHAN_MS 60000
#endif
/* How long clients have after a signal: as Bridge's STOP_SPREAD_S and STOP_GRACE_S. */
#ifndef STOP_MS
#define STOP_MS 6000
#endif

/* openssl/ssl.h, openssl/bio.h */
#define ERROR_WANT_READ 2
#define ERROR_WANT_WRITE 3
#define SENT_AND_RECEIVED_SHUTDOWN 3
#define BIO_TYPE (100 | 0x0400) /* a source or sink, the first type that is free */
#define BIO_FLAG_READ 0x01
#define BIO_FLAG_WRITE 0x02
#define BIO_FLAG_RETRY 0x08
#define BIO_COMMAND_FLUSH 11

/* One of a client's two sockets, as epoll names it. */
struct side {
    struct client *client;
    int fd;
    uint32_t mask;
    int is_watched;
};

struct client {
    struct client *next, *previous;
    struct side tcp, pair;
    void *ssl, *bio;
    int retry_size;        /* bytes of a record that SSL_write wants again, 0: none */
    int read_wants_write;  /* SSL_read waits until the client's socket can be written */
    int write_wants_read;
    int pair_is_full;      /* the custodian does not take what the client sent */
    int tcp_is_full;       /* the client does not take what the custodian sent */
    int client_has_ended;  /* nothing more passes to the custodian */
    int custodian_has_ended; /* nothing more passes to the client */
    int is_discarded;      /* what it sends: its custodian has closed, or reads no more */
    int is_unfinished;     /* it has more for this process than one turn allows */
    int is_started;
    int is_closed;
    int64_t ends_at; /* ms; 0: at no time */
};

static struct openssl openssl;
static void *method;
static int epoll_fd = -1;
static int signals_fd = -1;
static struct client *first;
static struct client *closed; /* freed after the turn, whose events may name them */
static size_t count;
static int is_any_unfinished;
static int64_t stop_at;    /* ms; 0: at no time */
static int64_t due_at;     /* when the next client is to be closed, or earlier; 0: never */
static unsigned char payload[RECORD_BYTES];
static char wire[RECORD_BYTES + 4096];

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Tell whether a call on a socket may succeed later; without memory it may. */
static int would_block(void)
{
    return errno == EAGAIN || errno == EINTR || errno == ENOBUFS || errno == ENOMEM;
}

/* --- The BIO --- */

static int bio_read(void *bio, char *data, int size)
{
    struct client *client = openssl.bio_get_data(bio);
    ssize_t received;

    openssl.bio_clear_flags(bio, BIO_FLAG_READ | BIO_FLAG_WRITE | BIO_FLAG_RETRY);
    if (client == NULL || data == NULL || size <= 0)
        return 0;
    if (size > (int)sizeof wire)
        size = sizeof wire;
    received = recv(client->tcp.fd, wire, (size_t)size, MSG_DONTWAIT);
    if (received < 0 && would_block())
        openssl.bio_set_flags(bio, BIO_FLAG_READ | BIO_FLAG_RETRY);
    else if (received > 0)
        memcpy(data, wire, (size_t)received);
    return (int)received;
}

static int bio_write(void *bio, const char *data, int size)
{
    struct client *client = openssl.bio_get_data(bio);
    ssize_t sent;

    openssl.bio_clear_flags(bio, BIO_FLAG_READ | BIO_FLAG_WRITE | BIO_FLAG_RETRY);
    if (client == NULL || data == NULL || size <= 0)
        return 0;
    if (size > (int)sizeof wire)
        size = sizeof wire;
    memcpy(wire, data, (size_t)size);
    sent = send(client->tcp.fd, wire, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && would_block())
        openssl.bio_set_flags(bio, BIO_FLAG_WRITE | BIO_FLAG_RETRY);
    return (int)sent;
}

static long bio_ctrl(void *bio, int command, long number, void *data)
{
    (void)bio;
    (void)number;
    (void)data;
    return command == BIO_COMMAND_FLUSH; /* nothing is ever held back */
}

/* --- epoll --- */

static int watch(struct side *side, uint32_t mask)
{
    struct epoll_event event;

    if (!side->is_watched || side->mask == mask)
        return 0;
    memset(&event, 0, sizeof event);
    event.events = side->mask = mask;
    event.data.ptr = side;
    return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, side->fd, &event);
}

/* A socket that both ends closed is reported in every turn, whatever the mask. */
static void look_away(struct side *side)
{
    if (side->is_watched)
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, side->fd, NULL);
    side->is_watched = 0;
}

static int look_at(struct side *side, struct client *client, int fd)
{
    struct epoll_event event;

    side->client = client;
    side->fd = fd;
    memset(&event, 0, sizeof event);
    event.events = EPOLLONESHOT; /* nothing, and an end only once: the client is not ours yet */
    event.data.ptr = side;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        return -1;
    side->is_watched = 1;
    side->mask = EPOLLONESHOT;
    return 0;
}

/* --- One client --- */

static void unlink_client(struct client *client)
{
    if (client->previous)
        client->previous->next = client->next;
    else
        first = client->next;
    if (client->next)
        client->next->previous = client->previous;
    count--;
}

static void close_client(struct client *client)
{
    if (client->is_closed)
        return;
    client->is_closed = 1;
    look_away(&client->tcp);
    look_away(&client->pair);
    openssl.err_clear_error();
    /* Without it, SSL_free takes the session out of a cache that httpd's children share. */
    openssl.ssl_set_shutdown(client->ssl, SENT_AND_RECEIVED_SHUTDOWN);
    openssl.bio_set_data(client->bio, NULL);
    openssl.ssl_free(client->ssl);
    close(client->pair.fd);
    close(client->tcp.fd);
    unlink_client(client);
    client->next = closed;
    closed = client;
}

static void end_client_side(struct client *client)
{
    if (!client->client_has_ended)
        shutdown(client->pair.fd, SHUT_WR);
    client->client_has_ended = 1;
    client->pair_is_full = client->read_wants_write = 0;
}

static void end_custodian_side(struct client *client)
{
    client->custodian_has_ended = 1;
    client->tcp_is_full = client->write_wants_read = 0;
}

/* Read what no custodian gets: a close of a socket with unread bytes is a reset, which would
 * drop what the client has not received yet.  The bytes are records; none is decrypted. */
static void discard_input(struct client *client)
{
    int reads;

    for (reads = 0; reads < RECORDS_A_TURN && !client->client_has_ended; reads++) {
        ssize_t received = recv(client->tcp.fd, wire, sizeof wire, MSG_DONTWAIT);

        if (received < 0 && would_block())
            return;
        if (received <= 0)
            end_client_side(client);
    }
}

/* Pass what the client sent to the custodian. */
static void pass_to_custodian(struct client *client)
{
    int records;

    client->pair_is_full = client->read_wants_write = 0;
    if (client->is_discarded) {
        discard_input(client);
        return;
    }
    for (records = 0; records < RECORDS_A_TURN; records++) {
        ssize_t sent, consumed = 0;
        int size, error;

        if (client->client_has_ended)
            return;
        openssl.err_clear_error();
        size = openssl.ssl_peek(client->ssl, payload, RECORD_BYTES);
        if (size <= 0) {
            error = openssl.ssl_get_error(client->ssl, size);
            client->read_wants_write = error == ERROR_WANT_WRITE;
            if (error != ERROR_WANT_READ && error != ERROR_WANT_WRITE)
                end_client_side(client);
            return;
        }
        sent = send(client->pair.fd, payload, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            client->pair_is_full = would_block();
            client->is_discarded = !client->pair_is_full; /* epoll tells of more */
            return;
        }
        while (consumed < sent) {
            int read = openssl.ssl_read(client->ssl, payload, (int)(sent - consumed));

            if (read <= 0) { /* it cannot be: the record was peeked at */
                end_client_side(client);
                return;
            }
            consumed += read;
        }
        if (sent < size) {
            client->pair_is_full = 1;
            return;
        }
        if (size < RECORD_BYTES && client->tcp.is_watched &&
            !openssl.ssl_has_pending(client->ssl))
            return; /* epoll tells of more, and of the end */
    }
    client->is_unfinished = is_any_unfinished = 1;
}

/* Say that nothing more comes: close_notify, then FIN. */
static void say_end(struct client *client)
{
    int result;

    openssl.err_clear_error();
    result = openssl.ssl_shutdown(client->ssl);
    if (result < 0 && openssl.ssl_get_error(client->ssl, result) == ERROR_WANT_WRITE) {
        client->tcp_is_full = 1;
        return;
    }
    shutdown(client->tcp.fd, SHUT_WR);
    end_custodian_side(client);
}

/* Remove from the pair what the client has taken. */
static int consume(struct client *client, int size)
{
    while (size > 0) {
        ssize_t received = recv(client->pair.fd, payload, (size_t)size, MSG_DONTWAIT);

        if (received <= 0 && !(received < 0 && errno == EINTR))
            return -1;
        if (received > 0)
            size -= (int)received;
    }
    return 0;
}

/* Pass what the custodian sent to the client. */
static void pass_to_client(struct client *client)
{
    int records;

    client->tcp_is_full = client->write_wants_read = 0;
    for (records = 0; records < RECORDS_A_TURN; records++) {
        size_t room = client->retry_size ? (size_t)client->retry_size : RECORD_BYTES;
        ssize_t received;
        int sent, error;

        if (client->custodian_has_ended)
            return;
        received = recv(client->pair.fd, payload, room, MSG_PEEK | MSG_DONTWAIT);
        if (received < 0 && would_block())
            return;
        if (received <= 0) {
            say_end(client);
            return;
        }
        openssl.err_clear_error();
        sent = openssl.ssl_write(client->ssl, payload, (int)received);
        if (sent <= 0) {
            error = openssl.ssl_get_error(client->ssl, sent);
            client->tcp_is_full = error == ERROR_WANT_WRITE;
            client->write_wants_read = error == ERROR_WANT_READ;
            if (client->tcp_is_full || client->write_wants_read) {
                client->retry_size = (int)received; /* OpenSSL has encrypted so many */
                return;
            }
            shutdown(client->pair.fd, SHUT_RD); /* EPIPE for the custodian */
            end_custodian_side(client);
            return;
        }
        client->retry_size = 0;
        if (consume(client, sent) < 0) {
            end_custodian_side(client);
            return;
        }
        if ((size_t)received < room && client->pair.is_watched)
            return; /* epoll tells of more, and of the end */
    }
    client->is_unfinished = is_any_unfinished = 1;
}

static void update(struct client *client)
{
    uint32_t tcp = 0, pair = 0;

    if (!client->tcp.is_watched) { /* it was reset or closed: nothing is to be waited for */
        if (!client->pair_is_full && !client->is_unfinished)
            end_client_side(client);
        if (client->tcp_is_full || client->write_wants_read)
            end_custodian_side(client);
    }
    if (client->client_has_ended && client->custodian_has_ended) {
        close_client(client);
        return;
    }
    if (!client->client_has_ended && !client->pair_is_full)
        tcp |= client->read_wants_write ? EPOLLOUT : EPOLLIN;
    if (client->tcp_is_full)
        tcp |= EPOLLOUT;
    if (client->write_wants_read)
        tcp |= EPOLLIN;
    if (client->pair_is_full)
        pair |= EPOLLOUT;
    if (!client->custodian_has_ended && !client->tcp_is_full && !client->write_wants_read)
        pair |= EPOLLIN;
    if (watch(&client->tcp, tcp) < 0 || watch(&client->pair, pair) < 0)
        close_client(client);
}

static void serve(struct client *client)
{
    client->is_unfinished = 0;
    pass_to_custodian(client);
    pass_to_client(client);
    update(client);
}

/* Do what ``serve`` does for a client if one of its sides has something to read, and no more. */
static void serve_reader(struct side *side)
{
    struct client *client = side->client;

    if (side == &client->pair)
        pass_to_client(client);
    else
        pass_to_custodian(client);
    update(client);
}

/* The custodian has closed its end. */
static void lose_custodian(struct client *client)
{
    struct linger linger = {0, 0};
    socklen_t size = sizeof linger;

    look_away(&client->pair);
    client->is_discarded = 1;
    client->pair_is_full = client->read_wants_write = 0;
    if (!client->ends_at)
        client->ends_at = now_ms() + ORPHAN_MS;
    if (!due_at || client->ends_at < due_at)
        due_at = client->ends_at;
    getsockopt(client->tcp.fd, SOL_SOCKET, SO_LINGER, &linger, &size);
    if (linger.l_onoff)
        close_client(client); /* which resets the connection */
}

static void handle(struct side *side, uint32_t events)
{
    struct client *client = side->client;

    if (client->is_closed || !client->is_started)
        return;
    if (events & (EPOLLHUP | EPOLLERR)) {
        if (side == &client->pair) {
            lose_custodian(client);
            if (client->is_closed)
                return;
        } else {
            look_away(side); /* what it sent before is still to be read */
        }
    } else if (events == EPOLLIN && !client->write_wants_read && !client->is_unfinished) {
        serve_reader(side);
        return;
    }
    serve(client);
}

/* --- All clients --- */

int relay_open(const struct openssl *functions)
{
    if (epoll_fd != -1)
        return 0;
    openssl = *functions;
    method = openssl.bio_meth_new(BIO_TYPE, "apachews relay");
    if (method == NULL || !openssl.bio_meth_set_read(method, bio_read) ||
        !openssl.bio_meth_set_write(method, bio_write) ||
        !openssl.bio_meth_set_ctrl(method, bio_ctrl)) {
        errno = ENOMEM;
        return -1;
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return epoll_fd < 0 ? -1 : 0;
}

int relay_descriptor(void)
{
    return epoll_fd;
}

size_t relay_count(void)
{
    return count;
}

size_t relay_client_descriptors(int *to, size_t room)
{
    struct client *client;
    size_t found = 0;

    for (client = first; client && found + 2 <= room; client = client->next) {
        to[found++] = client->tcp.fd;
        to[found++] = client->pair.fd;
    }
    return found;
}

struct client *relay_add(void *ssl, int tcp, int pair)
{
    struct client *client = calloc(1, sizeof *client);

    if (client == NULL)
        return NULL;
    client->ssl = ssl;
    client->bio = openssl.bio_new(method);
    if (client->bio == NULL) {
        free(client);
        errno = ENOMEM;
        return NULL;
    }
    openssl.bio_set_data(client->bio, client);
    openssl.bio_set_init(client->bio, 1);
    if (look_at(&client->tcp, client, tcp) < 0 || look_at(&client->pair, client, pair) < 0) {
        int error = errno;

        look_away(&client->tcp);
        openssl.bio_set_data(client->bio, NULL);
        openssl.bio_free(client->bio);
        free(client);
        errno = error;
        return NULL;
    }
    client->next = first;
    if (first)
        first->previous = client;
    first = client;
    count++;
    return client;
}

void relay_start(struct client *client)
{
    client->is_started = 1;
    openssl.ssl_set_bio(client->ssl, client->bio, client->bio);
    serve(client); /* OpenSSL may hold bytes that the socket does not show */
}

void relay_withdraw(struct client *client)
{
    look_away(&client->tcp);
    look_away(&client->pair);
    openssl.bio_set_data(client->bio, NULL);
    openssl.bio_free(client->bio);
    unlink_client(client);
    client->is_closed = 1;
    client->next = closed;
    closed = client;
}

static void free_closed(void)
{
    while (closed) {
        struct client *client = closed;

        closed = client->next;
        free(client);
    }
}

/* End a client whose time is over. */
static void expire(struct client *client, int is_orphan)
{
    static const struct linger reset = {1, 0};
    int unsent = 0;

    if (!client->custodian_has_ended)
        say_end(client);
    /* The kernel would keep megabytes for a client that does not read, for many minutes. */
    if (is_orphan && ioctl(client->tcp.fd, TIOCOUTQ, &unsent) == 0 && unsent > 0)
        setsockopt(client->tcp.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close_client(client);
}

/* End those whose time is over. */
static void close_due(int64_t now)
{
    struct client *client, *next;

    due_at = stop_at;
    for (client = first; client; client = next) {
        int64_t at = client->ends_at;

        next = client->next;
        if (stop_at && (!at || stop_at < at))
            at = stop_at;
        if (!at || !client->is_started)
            continue;
        if (at <= now)
            expire(client, at == client->ends_at);
        else if (!due_at || at < due_at)
            due_at = at;
    }
}

static void serve_unfinished(void)
{
    struct client *client, *next;

    is_any_unfinished = 0;
    for (client = first; client; client = next) {
        next = client->next;
        if (client->is_unfinished)
            serve(client);
    }
}

int relay_wait_ms(int max_wait_ms)
{
    int64_t rest;

    if (is_any_unfinished)
        return 0;
    if (!due_at)
        return max_wait_ms;
    rest = due_at - now_ms();
    if (rest < 0)
        rest = 0;
    if (rest > INT_MAX)
        rest = INT_MAX;
    return max_wait_ms >= 0 && max_wait_ms < rest ? max_wait_ms : (int)rest;
}

/* Give clients some time after a signal that ends the process. */
static void begin_stop(void)
{
    if (!stop_at) {
        stop_at = now_ms() + STOP_MS;
        if (!due_at || stop_at < due_at)
            due_at = stop_at;
    }
}

static void read_signal(void)
{
    static struct signalfd_siginfo signal;

    /* A custodian's SIGIO (fcntl(2), F_NOTIFY) may still be pending. */
    if (read(signals_fd, &signal, sizeof signal) == sizeof signal && signal.ssi_signo != SIGIO)
        begin_stop();
}

void relay_turn(int max_wait_ms)
{
    struct epoll_event events[EVENTS];
    int ready, i;

    ready = epoll_wait(epoll_fd, events, EVENTS, relay_wait_ms(max_wait_ms));
    if (is_any_unfinished)
        serve_unfinished();
    for (i = 0; i < ready; i++) {
        if (events[i].data.ptr == NULL)
            read_signal();
        else
            handle(events[i].data.ptr, events[i].events);
    }
    if (due_at) {
        int64_t now = now_ms();

        if (now >= due_at)
            close_due(now);
    }
    free_closed();
}

void relay_run(int signals, int is_stopping)
{
    struct epoll_event event;

    if (is_stopping)
        begin_stop();

    memset(&event, 0, sizeof event);
    event.events = EPOLLIN;
    signals_fd = signals;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, signals, &event);
    while (count > 0)
        relay_turn(-1);
}
