#include "system.h"

#include "notify.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Servers of this process that are ready and neither draining nor stopped. */
static atomic_int ready_count;

static void notify(const char *state)
{
    const char *name = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (name == NULL || (name[0] != '/' && name[0] != '@') ||
        strlen(name) >= sizeof address.sun_path) {
        return;
    }
    size_t length = strlen(name);
    memcpy(address.sun_path, name, length);
    if (name[0] == '@') { /* an abstract name */
        address.sun_path[0] = '\0';
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        /* Best effort: a lost message does not affect clients. */
        (void)sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address,
                     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
        close(fd);
    }
}

void notify_ready(const char *path)
{
    char state[256];
    atomic_fetch_add(&ready_count, 1);
    snprintf(state, sizeof state, "READY=1\nSTATUS=listening on %.200s", path);
    notify(state);
}

void notify_stopping(void)
{
    if (atomic_fetch_sub(&ready_count, 1) == 1) {
        notify("STOPPING=1");
    }
}
