#include "system.h"

#include "accept.h"

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>

#include "connection.h"

/* The pause in accepting after an error, such as EMFILE. */
#define ACCEPT_PAUSE_MS 1000

static bool watch_listener(apachews_server *server)
{
    /* Exclusive: of several processes that share the socket, a new client wakes one. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = &server->file};
    return epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->file.fd, &event) == 0;
}

static void unwatch_listener(apachews_server *server)
{
    /* Closing the descriptor is not enough: epoll keeps an entry as long as any process has the
     * same socket open. */
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, server->file.fd, NULL);
}

bool accept_start(apachews_server *server)
{
    server->is_accepting = true;
    return watch_listener(server);
}

void accept_stop(apachews_server *server)
{
    if (server->is_accepting && server->accept_resume_ms == 0) {
        unwatch_listener(server);
    }
    server->is_accepting = false;
    server->accept_resume_ms = 0;
    socket_file_close(&server->file);
}

/* The backlog stays readable while accept4() fails: without a pause the loop would spin. */
static void pause_accepting(apachews_server *server, int number)
{
    unwatch_listener(server);
    server->accept_resume_ms = clock_ms() + ACCEPT_PAUSE_MS;
    server->accept_error = number;
}

void accept_resume(apachews_server *server, int64_t now_ms)
{
    if (server->accept_resume_ms != 0 && server->accept_resume_ms <= now_ms) {
        server->accept_resume_ms = 0;
        watch_listener(server);
    }
}

void accept_clients(apachews_server *server)
{
    while (server->is_accepting && server->accept_resume_ms == 0) {
        int fd = accept4(server->file.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            int number = errno;
            if (number == ECONNABORTED || number == EINTR) {
                continue;
            }
            if (number != EAGAIN && number != EWOULDBLOCK) {
                pause_accepting(server, number);
            }
            return;
        }
        if (!connection_add(server, fd)) {
            pause_accepting(server, ENOMEM);
            return;
        }
        if (server->file.is_inherited && !server->is_draining) {
            /* Workers share an inherited socket: accept one client, then go to the end of its
             * wait queue, because the kernel wakes the first sleeper in it. */
            unwatch_listener(server);
            watch_listener(server);
            return;
        }
    }
}
