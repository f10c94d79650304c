/* Sends every message back: an unchanged program for the first apachews, except that the path is
 * an argument. */
#include <apache-ws-common.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "/var/www/public_html/websocket.ws";
    apachews_context *ctx;
    apachews_event *event;
    uint8_t *data;
    size_t length;

    apachews_initialize_os();
    unlink(path);
    ctx = apachews_create(path);
    if (ctx == NULL) {
        perror(path);
        return 1;
    }
    while ((event = apachews_server_next_event(ctx)) != NULL) {
        switch (apachews_event_get_type(event)) {
        case ApacheWSAcceptEvent:
            break;
        case ApacheWSIOEvent:
            switch (apachews_event_read(event, &data, &length)) {
            case ApacheWSSuccess:
                apachews_event_respond(event, data, length);
                free(data);
                break;
            case ApacheWSConnectionClosed:
                apachews_context_remove_client(ctx, apachews_event_get_client(event));
                break;
            default:
                break;
            }
            break;
        default:
            break;
        }
        apachews_event_free(event);
    }
    apachews_context_free(ctx);
    return 0;
}
