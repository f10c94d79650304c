/* Sends every message back.  Its argument is the path of its socket file. */
#include <apachews.h>
#include <signal.h>
#include <stdio.h>

static apachews_server *server;
static volatile sig_atomic_t received; /* the last signal: SIGTERM, SIGINT or SIGHUP */

static void on_signal(int number)
{
    received = number;
    apachews_server_wake(server);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s SOCKET.ws\n", argv[0]);
        return 2;
    }
    apachews_error error;
    server = apachews_server_open(argv[1], NULL, &error);
    if (server == NULL) {
        fprintf(stderr, "%s: %s\n", argv[0], error.text);
        return 1;
    }
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    signal(SIGHUP, on_signal);

    apachews_event event;
    while (apachews_server_next(server, -1, &event)) {
        switch (event.kind) {
        case APACHEWS_MESSAGE:
            apachews_send(event.client, event.type, event.data, event.length);
            break;
        case APACHEWS_WAKE:
            if (received == SIGHUP) {
                apachews_server_drain(server, 30000);
            } else if (received) {
                apachews_server_stop(server);
            }
            break;
        case APACHEWS_INVALID:
        case APACHEWS_ERROR:
            fprintf(stderr, "%s: %s\n", argv[0], event.reason);
            break;
        default:
            break;
        }
    }
    /* The handlers must not use a freed server. */
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    apachews_server_free(server);
    return 0;
}
