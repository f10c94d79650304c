/* A producer for tests/integration/test_groups.py: it numbers its broadcasts, and every other
 * message to a client says which number comes next.
 *
 *     room SOCKET.ws
 */
#include "system.h"

#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "apachews.h"
#include "check.h"

#define TICK_MS 4

static apachews_server *server;

static void on_signal(int number)
{
    (void)number;
    apachews_server_wake(server);
}

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void tick(long count)
{
    static char text[100100];
    int length = snprintf(text, sizeof text, "broadcast %ld %ld", (long)getpid(), count);
    if (count % 50 == 1) {
        /* Too long for a channel. */
        memset(text + length, ' ', 1);
        memset(text + length + 1, 'x', 100000);
        text[length + 100001] = '\0';
    }
    if (count % 3 == 0) {
        apachews_broadcast(server, APACHEWS_TEXT, text, strlen(text));
    } else {
        apachews_group_send(server, "room", APACHEWS_TEXT, text, strlen(text), NULL);
    }
}

int main(int argc, char **argv)
{
    long count = 0;
    long long tick_at = 0;
    apachews_event event;
    apachews_error error;
    CHECK(argc == 2);
    server = apachews_server_open(argv[1], &(apachews_options){.mode = 0666}, &error);
    CHECK(server != NULL);
    signal(SIGTERM, on_signal);
    for (;;) {
        long long wait = tick_at - now_ms();
        if (wait <= 0) {
            tick(count++);
            tick_at = now_ms() + TICK_MS;
            wait = TICK_MS;
        }
        if (!apachews_server_next(server, (int)wait, &event)) {
            break;
        }
        char text[300];
        if (event.kind == APACHEWS_OPEN) {
            snprintf(text, sizeof text, "next %ld %ld", (long)getpid(), count);
            apachews_group_join(event.client, "room");
            apachews_send_text(event.client, text);
        } else if (event.kind == APACHEWS_MESSAGE) {
            snprintf(text, sizeof text, "next %ld %ld %.200s", (long)getpid(), count, event.data);
            apachews_send_text(event.client, text);
        } else if (event.kind == APACHEWS_WAKE) {
            apachews_server_drain(server, 30000);
        }
    }
    signal(SIGTERM, SIG_IGN); /* its handler must not use a freed server */
    apachews_server_free(server);
    return 0;
}
