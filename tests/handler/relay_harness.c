/* Runs the relay of apachews_handler/native without Python, for test_tls_relay.py.
 *
 * Usage: relay_harness DESCRIPTOR CERTIFICATE KEY, or relay_harness compress SEED.
 * The descriptor is a Unix socket, on which commands of one byte come, each answered by one:
 *
 *   A  with two descriptors, TCP and pair: accept TLS on the first one, and relay the client
 *   U  ask the last client for new keys (TLS 1.3)
 *   M  make all memory cold
 *   R  be nothing but a relay (relay_run)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include "_tls_relay.h"

static SSL_CTX *context;
static SSL *last;
static int signals;
/* Something to compress, and to be found whole afterwards. */
static unsigned char *treasure[64];
#define TREASURE_BYTES 20000
/* Memory with guard pages, as the stacks of threads have them since glibc 2.42. */
#define GUARDED_BYTES (1 << 20)
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* Linux 6.13; an older one ignores it */
#endif

static void *address_of(void (*function)(void))
{
    void *address;

    memcpy(&address, &function, sizeof address);
    return address;
}

#define ADDRESS(function) address_of((void (*)(void))(function))

static void open_relay(void)
{
    void *addresses[] = {
        ADDRESS(SSL_peek), ADDRESS(SSL_read), ADDRESS(SSL_write), ADDRESS(SSL_get_error),
        ADDRESS(SSL_has_pending), ADDRESS(SSL_shutdown), ADDRESS(SSL_set_shutdown),
        ADDRESS(SSL_set_bio), ADDRESS(SSL_free), ADDRESS(ERR_clear_error), ADDRESS(BIO_meth_new),
        ADDRESS(BIO_meth_set_read), ADDRESS(BIO_meth_set_write), ADDRESS(BIO_meth_set_ctrl),
        ADDRESS(BIO_new), ADDRESS(BIO_set_data), ADDRESS(BIO_get_data), ADDRESS(BIO_set_init),
        ADDRESS(BIO_set_flags), ADDRESS(BIO_clear_flags), ADDRESS(BIO_free),
    };
    struct openssl functions;

    _Static_assert(sizeof addresses == sizeof functions, "as many as there are");
    memcpy(&functions, addresses, sizeof functions);
    if (relay_open(&functions) < 0)
        abort();
}

static char begin_client(int tcp, int pair)
{
    struct client *client;
    SSL *ssl = SSL_new(context);

    SSL_set_fd(ssl, tcp);
    if (SSL_accept(ssl) != 1) {
        ERR_print_errors_fp(stderr);
        return 'n';
    }
    /* As openssl.TlsSession.take_over does. */
    SSL_set_options(ssl, SSL_OP_NO_RENEGOTIATION);
    SSL_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                          SSL_MODE_RELEASE_BUFFERS);
    SSL_set_read_ahead(ssl, 1);
    fcntl(tcp, F_SETFL, O_NONBLOCK);
    fcntl(pair, F_SETFL, O_NONBLOCK);
    client = relay_add(ssl, tcp, pair); /* what an offer that is refused does */
    if (client == NULL)
        return 'n';
    relay_withdraw(client);
    client = relay_add(ssl, tcp, pair);
    if (client == NULL)
        return 'n';
    last = ssl;
    relay_start(client);
    return 'y';
}

static void make_treasure(void)
{
    size_t i, j;

    for (i = 0; i < 64; i++) {
        treasure[i] = malloc(TREASURE_BYTES);
        for (j = 0; j < TREASURE_BYTES; j++)
            treasure[i][j] = (unsigned char)(i < 32 ? j / 100 + i : (j * j + i * 7919) >> 3);
    }
}

static void make_guards(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), at;
    unsigned char *memory = mmap(NULL, GUARDED_BYTES, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        abort();
    memset(memory, 'x', GUARDED_BYTES);
    for (at = 0; at < GUARDED_BYTES; at += 37 * page)
        madvise(memory + at, page, MADV_GUARD_INSTALL);
}

static void find_treasure(void)
{
    size_t i, j;

    for (i = 0; i < 64; i++) {
        for (j = 0; j < TREASURE_BYTES; j++)
            if (treasure[i][j] !=
                (unsigned char)(i < 32 ? j / 100 + i : (j * j + i * 7919) >> 3))
                abort();
        free(treasure[i]);
    }
}

static int obey(int control)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(2 * sizeof(int))];
    } ancillary;
    char command = 0, answer = 'y';
    struct iovec data = {&command, 1};
    struct msghdr message;
    int fds[2] = {-1, -1};

    memset(&message, 0, sizeof message);
    memset(&ancillary, 0, sizeof ancillary);
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = &ancillary;
    message.msg_controllen = sizeof ancillary;
    if (recvmsg(control, &message, 0) <= 0)
        return 0;
    if (message.msg_controllen >= CMSG_LEN(sizeof fds))
        memcpy(fds, CMSG_DATA(&ancillary.header), sizeof fds);
    if (command == 'A')
        answer = begin_client(fds[0], fds[1]);
    else if (command == 'U')
        answer = SSL_key_update(last, SSL_KEY_UPDATE_REQUESTED) ? 'y' : 'n';
    else if (command == 'M')
        cold_memory_store(0);
    if (send(control, &answer, 1, MSG_NOSIGNAL) != 1)
        return 0;
    if (command == 'R')
        relay_run(signals, 0);
    return 1;
}

static int serve(int control)
{
    struct pollfd fds[2] = {{control, POLLIN, 0}, {relay_descriptor(), POLLIN, 0}};

    /* The condition follows the turn, which may end the last client. */
    while (relay_turn(0), fds[0].fd >= 0 || relay_count() > 0) {
        if (poll(fds, 2, relay_wait_ms(-1)) < 0 && errno != EINTR)
            abort();
        if (fds[0].fd >= 0 && fds[0].revents && !obey(control))
            fds[0].fd = -1;
    }
    return 0;
}

/* Compress, expand, and expand what was changed: nothing may be read or written outside. */
static int compress_and_expand(unsigned seed)
{
    unsigned round;

    srand(seed);
    for (round = 0; round < 3000; round++) {
        size_t size = 1 + (size_t)rand() % 16384, room = 1 + (size_t)rand() % 20000, i, stored;
        unsigned char *from = malloc(size), *to = malloc(room), *back = malloc(size);
        int spread = 1 + rand() % 255;

        for (i = 0; i < size; i++)
            from[i] = (unsigned char)(i > 64 && rand() % 20 ? from[i - 1 - (size_t)rand() % 3 * 8]
                                                            : rand() % spread);
        stored = cold_memory_compress(from, size, to, room);
        if (stored > room)
            abort();
        if (stored > 0) {
            unsigned char *exact = malloc(stored);

            memcpy(exact, to, stored);
            if (cold_memory_expand(exact, stored, back, size) < 0 || memcmp(from, back, size))
                abort();
            for (i = 0; i < 8; i++)
                exact[(size_t)rand() % stored] = (unsigned char)rand();
            cold_memory_expand(exact, stored, back, size);
            free(exact);
        }
        free(from);
        free(to);
        free(back);
    }
    return 0;
}

int main(int count, char **arguments)
{
    sigset_t set;
    int result;

    if (count == 3)
        return compress_and_expand((unsigned)atoi(arguments[2]));
    if (count != 4)
        return 2;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    context = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(context, arguments[2]) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, arguments[3], SSL_FILETYPE_PEM) != 1)
        return 3;
    make_treasure();
    make_guards();
    open_relay();
    result = serve(atoi(arguments[1]));
    find_treasure();
    SSL_CTX_free(context);
    return result;
}
