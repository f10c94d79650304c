/* The server, with bridges simulated by the test, in one thread.
 *
 * The linker wraps malloc() and related functions, so that tests can make any allocation fail. */
#include "system.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "apache-ws-common.h"
#include "apachews.h"
#include "check.h"
#include "wire.h"

#define WAIT_MS 10000

static char directory[64];
static char path[96];

/* ---- Failing allocations ---- */

static long fails_at = -1; /* the allocation that fails; -1: none */
static long allocations;

static bool may_allocate(void)
{
    return allocations++ != fails_at;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t length);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t length);

#define OR_NO_MEMORY(call)                                                                      \
    if (may_allocate()) {                                                                       \
        return call;                                                                            \
    }                                                                                           \
    errno = ENOMEM;                                                                             \
    return NULL

void *__wrap_malloc(size_t size)
{
    OR_NO_MEMORY(__real_malloc(size));
}

void *__wrap_calloc(size_t count, size_t size)
{
    OR_NO_MEMORY(__real_calloc(count, size));
}

void *__wrap_realloc(void *memory, size_t size)
{
    OR_NO_MEMORY(__real_realloc(memory, size));
}

char *__wrap_strdup(const char *text)
{
    OR_NO_MEMORY(__real_strdup(text));
}

char *__wrap_strndup(const char *text, size_t length)
{
    OR_NO_MEMORY(__real_strndup(text, length));
}

/* ---- The bridge ---- */

#define OPEN_HEAD                                                                               \
    "{\"version\":1,\"id\":\"id-1\",\"resumed\":false,\"request\":{\"method\":\"GET\","         \
    "\"uri\":\"/chat.ws\",\"headers\":[[\"accept-language\",\"de;q=0.5,en-GB\"]]},"             \
    "\"remote\":[\"203.0.113.7\",51514],\"local\":[\"192.0.2.1\",80],\"scheme\":\"ws\","        \
    "\"user\":\"ann\",\"vhost\":\"example.org\",\"subprotocols\":{\"offered\":[\"chat\"],"      \
    "\"chosen\":null},\"env\":{},\"answer_required\":"

static int bridge_connect(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = WAIT_MS / 1000};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    strcpy(address.sun_path, path);
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    return fd;
}

static bool bridge_send_all(int fd, const void *data, size_t length)
{
    const char *at = data;
    while (length > 0) {
        ssize_t sent = send(fd, at, length, MSG_NOSIGNAL);
        if (sent <= 0) {
            return false;
        }
        at += sent;
        length -= (size_t)sent;
    }
    return true;
}

static bool bridge_send(int fd, int first, const void *payload, size_t length)
{
    unsigned char header[WIRE_MAX_HEADER];
    size_t size = wire_encode_header(header, first, length);
    return bridge_send_all(fd, header, size) && bridge_send_all(fd, payload, length);
}

static int bridge_open_with(const char *members)
{
    char text[1024];
    int fd = bridge_connect();
    int length = snprintf(text, sizeof text, OPEN_HEAD "%s}", members);
    bridge_send(fd, WIRE_FIN | WIRE_OP_OPEN, text, (size_t)length);
    return fd;
}

static int bridge_open(bool is_asking)
{
    return bridge_open_with(is_asking ? "true" : "false");
}

static bool bridge_receive_all(int fd, void *data, size_t length)
{
    char *at = data;
    while (length > 0) {
        ssize_t size = recv(fd, at, length, 0);
        if (size <= 0) {
            return false;
        }
        at += size;
        length -= (size_t)size;
    }
    return true;
}

/* Read a frame; return its first byte, or -1 at the end.  The payload is truncated to size. */
static int bridge_receive(int fd, char *payload, size_t capacity, size_t *length)
{
    unsigned char head[WIRE_MAX_HEADER];
    struct wire_header header;
    const char *problem;
    size_t size = 0;
    int result;
    do {
        if (!bridge_receive_all(fd, head + size, size < 2 ? 2 - size : header.size - size)) {
            return -1;
        }
        size = size < 2 ? 2 : header.size;
        result = wire_decode_header(head, size, &header, &problem);
        CHECK(result >= 0);
    } while (result == 0);
    *length = (size_t)header.length;
    for (uint64_t at = 0; at < header.length;) {
        char chunk[4096];
        size_t wanted = header.length - at < sizeof chunk ? (size_t)(header.length - at)
                                                          : sizeof chunk;
        if (!bridge_receive_all(fd, chunk, wanted)) {
            return -1;
        }
        for (size_t i = 0; i < wanted && at + i < capacity; i++) {
            payload[at + i] = chunk[i];
        }
        at += wanted;
    }
    return header.first;
}

static void bridge_expect(int fd, int first, const void *payload, size_t length)
{
    char found[512] = "";
    size_t size = 0;
    int found_first = bridge_receive(fd, found, sizeof found, &size);
    if (found_first != first || size != length) {
        fprintf(stderr, "frame %#x %zu %.80s instead of %#x %zu %.80s\n", found_first, size, found,
                first, length, (const char *)payload);
    }
    CHECK(found_first == first && size == length);
    CHECK(memcmp(found, payload, length < sizeof found ? length : sizeof found) == 0);
}

static bool is_readable(int fd)
{
    struct pollfd watch = {.fd = fd, .events = POLLIN};
    return poll(&watch, 1, 0) == 1;
}

/* ---- The program ---- */

static apachews_server *open_server(const apachews_options *options)
{
    apachews_error error;
    apachews_server *server = apachews_server_open(path, options, &error);
    if (server == NULL) {
        fprintf(stderr, "%s\n", error.text);
    }
    CHECK(server != NULL);
    return server;
}

static apachews_event next(apachews_server *server, apachews_kind kind)
{
    apachews_event event;
    CHECK(apachews_server_next(server, WAIT_MS, &event));
    if (event.kind != kind) {
        fprintf(stderr, "event %d instead of %d: %d %s\n", event.kind, kind, event.code,
                event.reason);
    }
    CHECK(event.kind == kind);
    return event;
}

static void expect_message(apachews_server *server, apachews_type type, const char *text)
{
    apachews_event event = next(server, APACHEWS_MESSAGE);
    CHECK(event.type == type && strcmp(event.data, text) == 0 && event.length == strlen(text));
}

static void expect_nothing(apachews_server *server)
{
    apachews_event event;
    CHECK(apachews_server_next(server, 0, &event) && event.kind == APACHEWS_TIMEOUT);
}

static void test_where_it_cannot_listen(void)
{
    static const struct {
        const char *name;
        const char *group;
        apachews_error_code code;
        const char *text;
    } cases[] = {
        {"a-name-that-is-longer-than-the-hundred-and-seven-bytes-that-a-path-of-a-unix-socket-has-"
         "-and-then-some.ws", NULL, APACHEWS_PATH_TOO_LONG, "107 bytes"},
        {"no-directory/a.ws", NULL, APACHEWS_SYSTEM_ERROR, "No such file or directory"},
        {"file.ws", NULL, APACHEWS_NOT_A_SOCKET, "not a socket"},
        {"a.ws", "no-such-group", APACHEWS_NO_GROUP, "no-such-group"},
        {"live.ws", NULL, APACHEWS_IN_USE, "another producer listens"},
    };
    char name[256];
    apachews_error error;
    snprintf(name, sizeof name, "%s/file.ws", directory);
    int fd = open(name, O_WRONLY | O_CREAT, 0600);
    CHECK(fd >= 0);
    close(fd);
    snprintf(name, sizeof name, "%s/live.ws", directory);
    apachews_server *live = apachews_server_open(name, NULL, &error);
    CHECK(live != NULL && error.code == APACHEWS_NO_ERROR);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        apachews_options options = {.group = cases[i].group, .exclusive = true};
        snprintf(name, sizeof name, "%s/%s", directory, cases[i].name);
        CHECK(apachews_server_open(name, &options, &error) == NULL);
        CHECK(error.code == cases[i].code && strstr(error.text, cases[i].text) != NULL);
        CHECK(apachews_server_open(name, &options, NULL) == NULL);
        CHECK(i > 2 || (apachews_create(name) == NULL && errno != 0));
    }
    CHECK(apachews_create("") == NULL && errno == ENOENT);
    apachews_server_free(live);
    CHECK(access(name, F_OK) != 0);
}

static void test_files(void)
{
    struct stat status;
    apachews_options options = {.mode = 0606};
    char left_over[96], other[96];
    /* The left-over of a start that died, and files with similar names. */
    snprintf(left_over, sizeof left_over, "%s/.apachews-0123abcd", directory);
    snprintf(other, sizeof other, "%s/.apachews-0123abcd.ws", directory);
    CHECK(mknod(left_over, S_IFREG | 0600, 0) == 0 && mknod(other, S_IFREG | 0600, 0) == 0);
    apachews_server *first = open_server(&options);
    CHECK(access(left_over, F_OK) != 0 && unlink(other) == 0);
    CHECK(stat(path, &status) == 0 && (status.st_mode & 0777) == 0606);
    int early = bridge_open(false);
    /* Replaced: the first server keeps its clients. */
    apachews_server *second = open_server(NULL);
    CHECK(stat(path, &status) == 0 && (status.st_mode & 0777) == 0660);
    int late = bridge_open(false);
    next(first, APACHEWS_OPEN);
    next(second, APACHEWS_OPEN);
    expect_nothing(first);
    apachews_server_free(first);
    CHECK(stat(path, &status) == 0); /* the file is the other server's */
    apachews_server_free(second);
    CHECK(stat(path, &status) != 0);
    close(early);
    close(late);
}

/* The file is removed at the end, also after a chdir() and without a free descriptor. */
static void test_a_relative_path(void)
{
    struct rlimit limit, none;
    int before = open(".", O_RDONLY | O_DIRECTORY);
    CHECK(before >= 0 && chdir(directory) == 0);
    apachews_server *server = apachews_server_open("test.ws", NULL, NULL);
    CHECK(server != NULL && fchdir(before) == 0 && close(before) == 0);
    CHECK(access(path, F_OK) == 0);
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none = limit;
    none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    apachews_server_stop(server);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK(access(path, F_OK) != 0);
    apachews_server_free(server);
}

/* A forked child has copies of the descriptors, and does not prevent a new server. */
static void test_a_child_that_outlives_it(void)
{
    int ends[2];
    static apachews_server *server; /* static: else valgrind reports it as lost in the child */
    CHECK(pipe(ends) == 0);
    server = open_server(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char byte;
        close(ends[1]);
        _exit(read(ends[0], &byte, 1) == 0 ? 0 : 1);
    }
    alarm(WAIT_MS / 1000);
    apachews_server_free(server);
    apachews_server_free(open_server(NULL));
    alarm(0);
    close(ends[1]);
    close(ends[0]);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* A start that fails for lack of descriptors does not replace another server. */
static void test_a_start_that_fails(void)
{
    apachews_server *first = open_server(NULL);
    struct stat mine, status;
    struct rlimit limit, few;
    apachews_error error;
    CHECK(stat(path, &mine) == 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0);
    int lowest = dup(0);
    CHECK(lowest >= 0 && close(lowest) == 0);
    few = limit;
    apachews_server *second = NULL;
    for (rlim_t spare = 0; second == NULL; spare++) {
        few.rlim_cur = (rlim_t)lowest + spare;
        CHECK(spare < 10 && setrlimit(RLIMIT_NOFILE, &few) == 0);
        second = apachews_server_open(path, NULL, &error);
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        CHECK(second != NULL || error.number == EMFILE);
        CHECK(stat(path, &status) == 0 && (status.st_ino == mine.st_ino) == (second == NULL));
    }
    apachews_server_free(second);
    apachews_server_free(first);
}

/* Any process that can read the directory can lock it: servers start and stop anyway. */
static void test_a_directory_that_stays_locked(void)
{
    char left_over[96];
    int fd = open(directory, O_RDONLY | O_DIRECTORY);
    CHECK(fd >= 0 && flock(fd, LOCK_EX) == 0);
    snprintf(left_over, sizeof left_over, "%s/.apachews-0123abcd", directory);
    CHECK(mknod(left_over, S_IFREG | 0600, 0) == 0);
    alarm(WAIT_MS / 1000);
    apachews_server *server = open_server(NULL);
    int bridge = bridge_open(false);
    next(server, APACHEWS_OPEN);
    close(bridge);
    apachews_server_free(server);
    alarm(0);
    /* Both may belong to another start or server. */
    CHECK(access(left_over, F_OK) == 0 && access(path, F_OK) == 0);
    close(fd);
    apachews_server_free(open_server(NULL));
    CHECK(access(left_over, F_OK) != 0 && access(path, F_OK) != 0);
}

static void expect_told(int fd, const char *beginning)
{
    char told[256] = "";
    CHECK(recv(fd, told, sizeof told - 1, 0) > 0);
    CHECK(strncmp(told, beginning, strlen(beginning)) == 0);
}

/* systemd gets STOPPING when the last server of the process stops. */
static void test_what_systemd_is_told(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = WAIT_MS / 1000};
    char other[128];
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/notify", directory);
    snprintf(other, sizeof other, "%s.other.ws", path);
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    CHECK(setenv("NOTIFY_SOCKET", address.sun_path, 1) == 0);
    apachews_server *first = open_server(NULL);
    expect_told(fd, "READY=1\n");
    apachews_server *second = apachews_server_open(other, NULL, NULL);
    expect_told(fd, "READY=1\n");
    apachews_server_drain(first, 1000);
    apachews_server_free(first);
    CHECK(!is_readable(fd));
    apachews_server_drain(second, 1000);
    expect_told(fd, "STOPPING=1");
    apachews_server_free(second);
    CHECK(!is_readable(fd));
    CHECK(unsetenv("NOTIFY_SOCKET") == 0);
    close(fd);
    CHECK(unlink(address.sun_path) == 0);
}

static void test_messages(void)
{
    apachews_server *server = open_server(NULL);
    expect_nothing(server);
    CHECK(apachews_server_timeout(server) == -1);
    int bridge = bridge_open(false);
    apachews_event event = next(server, APACHEWS_OPEN);
    apachews_client *client = event.client;
    const apachews_request *request = apachews_client_request(client);
    CHECK(strcmp(request->user, "ann") == 0 && !request->resumed);
    CHECK(apachews_server_clients(server, NULL, 0) == 1);
    apachews_client_set_data(client, &bridge);
    CHECK(apachews_client_data(client) == &bridge);

    /* Three in one read: each is a string until the next event is requested. */
    CHECK(bridge_send_all(bridge, "\x81\x02hi\x82\x02\xFF\x01\x81\x00", 10));
    expect_message(server, APACHEWS_TEXT, "hi");
    expect_message(server, APACHEWS_BINARY, "\xFF\x01");
    expect_message(server, APACHEWS_TEXT, "");
    /* In pieces. */
    CHECK(bridge_send_all(bridge, "\x01\x01\xC3\x8A\x01z\x80\x01\xA9", 9));
    expect_message(server, APACHEWS_TEXT, "\xC3\xA9");
    /* Large, over many reads. */
    size_t size = 1024 * 1024;
    char *large = malloc(size);
    CHECK(large != NULL);
    memset(large, 'x', size);
    unsigned char header[WIRE_MAX_HEADER];
    CHECK(bridge_send_all(bridge, header,
                          wire_encode_header(header, WIRE_FIN | WIRE_OP_BINARY, size)));
    for (size_t at = 0; at < size; at += 65536) {
        CHECK(bridge_send_all(bridge, large + at, 65536));
        if (at + 65536 < size) {
            expect_nothing(server);
        }
    }
    event = next(server, APACHEWS_MESSAGE);
    CHECK(event.length == size && memcmp(event.data, large, size) == 0);

    CHECK(apachews_send_text(client, "gr\xC3\xBC\xC3\x9F"));
    bridge_expect(bridge, 0x81, "gr\xC3\xBC\xC3\x9F", 6);
    CHECK(!apachews_send_text(client, "\xFF") && errno == EILSEQ);
    CHECK(apachews_send(client, APACHEWS_BINARY, "\xFF", 1));
    bridge_expect(bridge, 0x82, "\xFF", 1);
    CHECK(!apachews_send(client, (apachews_type)WIRE_OP_CLOSE, "", 0) && errno == EINVAL);
    CHECK(apachews_broadcast(server, (apachews_type)0, "a", 1).reached == 0 && errno == EINVAL);
    CHECK(apachews_send(client, APACHEWS_BINARY, NULL, 0));
    bridge_expect(bridge, 0x82, "", 0);

    CHECK(apachews_ping(client));
    char ping[8];
    size_t length;
    CHECK(bridge_receive(bridge, ping, sizeof ping, &length) == 0x89 && length == 8);
    CHECK(bridge_send(bridge, 0x8A, "other", 5));
    CHECK(bridge_send(bridge, 0x8A, ping, 8));
    event = next(server, APACHEWS_PONG);
    CHECK(event.client == client && event.latency_s >= 0 && event.latency_s < 10);

    CHECK(!apachews_close(client, 1005, NULL) && errno == EINVAL);
    CHECK(!apachews_close(client, 1000, "\xFF") && errno == EINVAL);
    CHECK(apachews_close(client, 4000, "enough"));
    CHECK(!apachews_close(client, 4000, "enough") && errno == EPIPE);
    CHECK(!apachews_send_text(client, "late") && errno == EPIPE);
    CHECK(apachews_server_timeout(server) >= 0);
    bridge_expect(bridge, 0x88, "\x0F\xA0" "enough", 8);
    CHECK(bridge_send(bridge, 0x81, "crossed", 7));
    CHECK(bridge_send(bridge, 0x88, "\x0F\xA0", 2));
    event = next(server, APACHEWS_CLOSE);
    CHECK(event.client == client && event.code == 4000 && apachews_client_data(client) == &bridge);
    expect_nothing(server);
    free(large);
    close(bridge);
    apachews_server_free(server);
}

#define FLOODERS 8
#define FLOOD_MESSAGES 5000

/* Clients that flood delay another one by a few turns, and lose no message. */
static void test_a_flood_delays_the_others_by_a_turn(void)
{
    static char flood[FLOOD_MESSAGES * 3];
    apachews_server *server = open_server(NULL);
    int bridges[FLOODERS];
    int counts[FLOODERS] = {0};
    for (int i = 0; i < FLOOD_MESSAGES; i++) {
        memcpy(flood + (ptrdiff_t)i * 3, "\x81\x01x", 3);
    }
    for (int i = 0; i < FLOODERS; i++) {
        bridges[i] = bridge_open(false);
        apachews_client_set_data(next(server, APACHEWS_OPEN).client, &counts[i]);
    }
    for (int i = 0; i < FLOODERS; i++) {
        CHECK(bridge_send_all(bridges[i], flood, sizeof flood));
    }
    int quiet = bridge_open(false);
    /* Its OPEN and its message arrive while the others flood. */
    int since = 0;
    int longest = 0;
    apachews_event event;
    for (int total = 0; total < FLOODERS * FLOOD_MESSAGES + 2; total++) {
        CHECK(apachews_server_next(server, 0, &event) && event.kind != APACHEWS_TIMEOUT);
        int *count = apachews_client_data(event.client);
        if (count != NULL) {
            CHECK(event.kind == APACHEWS_MESSAGE && strcmp(event.data, "x") == 0);
            ++*count;
            since++;
            continue;
        }
        longest = since > longest ? since : longest;
        since = 0;
        if (event.kind == APACHEWS_OPEN) {
            CHECK(bridge_send(quiet, 0x81, "quiet", 5));
        } else {
            CHECK(event.kind == APACHEWS_MESSAGE && strcmp(event.data, "quiet") == 0);
            CHECK(apachews_server_timeout(server) == 0);
        }
    }
    if (longest > FLOODERS * 100) {
        fprintf(stderr, "the quiet client waited for %d messages\n", longest);
    }
    CHECK(longest <= FLOODERS * 100);
    for (int i = 0; i < FLOODERS; i++) {
        CHECK(counts[i] == FLOOD_MESSAGES);
    }
    expect_nothing(server);
    CHECK(apachews_server_timeout(server) == -1);

    /* A client that is closed, or whose server stops, can have unread messages. */
    CHECK(bridge_send_all(bridges[0], flood, sizeof flood));
    CHECK(bridge_send_all(bridges[1], flood, sizeof flood));
    for (int i = 0; i < 3 * FLOODERS * 10; i++) {
        event = next(server, APACHEWS_MESSAGE);
        if (i == 100) {
            CHECK(apachews_close(event.client, 1000, ""));
        }
    }
    apachews_server_free(server);
    for (int i = 0; i < FLOODERS; i++) {
        close(bridges[i]);
    }
    close(quiet);
}

static void test_ends(void)
{
    apachews_server *server = open_server(&(apachews_options){.max_message_bytes = 8});
    static const struct {
        const char *bytes;
        size_t length;
        int code;
    } cases[] = {
        {"\x88\x05\x0F\xA1" "bye", 7, 4001},
        {"\x88\x00", 2, 1005},
        {"\x81\x09" "123456789", 11, 1009},
        {"\x81\x01\xFF", 3, 1007},
        {"\xC1\x00", 2, 1002},
        {"", 0, 1006},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int bridge = bridge_open(false);
        apachews_client *client = next(server, APACHEWS_OPEN).client;
        CHECK(bridge_send_all(bridge, cases[i].bytes, cases[i].length));
        CHECK(shutdown(bridge, SHUT_WR) == 0);
        apachews_event event = next(server, APACHEWS_CLOSE);
        CHECK(event.client == client && event.code == cases[i].code);
        CHECK(apachews_client_has_ended(client));
        CHECK(!apachews_send_text(client, "late") && !apachews_close(client, 1000, NULL));
        CHECK(!apachews_group_join(client, "room") && errno == EPIPE);
        expect_nothing(server);
        close(bridge);
    }
    /* A peer that violates the wire is an INVALID; a probe has no event. */
    int stranger = bridge_connect();
    CHECK(bridge_send_all(stranger, "GET / HTTP/1.0\r\n\r\n", 18));
    apachews_event event = next(server, APACHEWS_INVALID);
    CHECK(event.client == NULL && event.code == 1002 && event.reason[0] != '\0');
    close(stranger);
    close(bridge_connect());
    expect_nothing(server);
    apachews_server_free(server);
}

static void test_kept_clients(void)
{
    apachews_server *server = open_server(NULL);
    int bridge = bridge_open(false);
    apachews_client *client = apachews_client_keep(next(server, APACHEWS_OPEN).client);
    close(bridge);
    next(server, APACHEWS_CLOSE);
    expect_nothing(server);
    CHECK(!apachews_send_text(client, "a") && !apachews_ping(client));
    CHECK(strcmp(apachews_client_request(client)->id, "id-1") == 0);
    CHECK(!apachews_group_leave(client, "room") && apachews_client_queued_bytes(client) == 0);
    apachews_server_free(server);
    CHECK(!apachews_send_text(client, "a") && !apachews_close(client, 1000, NULL));
    CHECK(!apachews_accept(client, NULL, NULL, 0, NULL));
    apachews_client_release(client);
    apachews_client_release(NULL);
    apachews_server_free(NULL);
}

static void test_slow_clients(void)
{
    static char block[65536];
    apachews_server *server = open_server(&(apachews_options){.max_queue_bytes = 1 << 20});
    int slow = bridge_open(false);
    apachews_client *client = next(server, APACHEWS_OPEN).client;
    int fast = bridge_open(false);
    apachews_client *other = next(server, APACHEWS_OPEN).client;
    apachews_delivery delivery;
    size_t sent = 0, most = 0;
    memset(block, 'x', sizeof block);
    do {
        delivery = apachews_broadcast(server, APACHEWS_TEXT, block, sizeof block);
        bridge_expect(fast, 0x81, block, sizeof block);
        CHECK(++sent < 1000);
        size_t queued = apachews_client_queued_bytes(client);
        most = queued > most ? queued : most;
        if (apachews_client_queued_bytes(client) > 600000 &&
            apachews_client_queued_bytes(client) < 700000) {
            /* Half full: the server does not read from it. */
            CHECK(bridge_send(slow, 0x81, "?", 1));
            expect_nothing(server);
        }
    } while (delivery.reached == 2);
    CHECK(delivery.reached == 1 && delivery.skipped == 1);
    CHECK(most > 1 << 20 && most <= (1 << 20) + 2 * sizeof block);
    apachews_event event = next(server, APACHEWS_CLOSE);
    CHECK(event.client == client && event.code == 1013);
    CHECK(apachews_send_text(other, "still here"));
    bridge_expect(fast, 0x81, "still here", 10);
    /* The frame that was started arrives whole, then the CLOSE. */
    char payload[256];
    size_t length;
    int first;
    while ((expect_nothing(server), first = bridge_receive(slow, payload, sizeof payload,
                                                          &length)) == 0x81) {
        CHECK(length == sizeof block);
    }
    CHECK(first == 0x88 && memcmp(payload, "\x03\xF5", 2) == 0);
    close(slow);
    close(fast);
    apachews_server_free(server);
}

static void test_what_waits_is_sent_in_order(void)
{
    apachews_server *server = open_server(&(apachews_options){.max_queue_bytes = 64 << 20});
    int bridge = bridge_open(false);
    apachews_client *client = next(server, APACHEWS_OPEN).client;
    static char block[100000];
    char payload[64], expected[64];
    size_t length;
    int count = 3000;
    for (int i = 0; i < count; i++) {
        int size = snprintf(block, sizeof block, "%d ", i);
        CHECK(apachews_send(client, APACHEWS_BINARY, block,
                            i % 100 == 0 ? sizeof block : (size_t)size + (size_t)(i % 40)));
        if (i % 50 == 0) {
            apachews_group_send(server, NULL, APACHEWS_BINARY, block, (size_t)size, NULL);
        }
    }
    CHECK(apachews_client_queued_bytes(client) > 1000000);
    for (int i = 0; i < count; i++) {
        for (int again = 0; again <= (i % 50 == 0); again++) {
            expect_nothing(server);
            CHECK(bridge_receive(bridge, payload, sizeof payload, &length) == 0x82);
            int size = snprintf(expected, sizeof expected, "%d ", i);
            CHECK(memcmp(payload, expected, (size_t)size) == 0);
        }
    }
    expect_nothing(server);
    CHECK(apachews_client_queued_bytes(client) == 0);
    close(bridge);
    apachews_server_free(server);
}

static void test_groups(void)
{
    enum { COUNT = 3 };
    apachews_server *server = open_server(NULL);
    apachews_client *clients[COUNT], *members[COUNT];
    int bridges[COUNT];
    char name[32];
    for (int i = 0; i < COUNT; i++) {
        bridges[i] = bridge_open(false);
        clients[i] = next(server, APACHEWS_OPEN).client;
        CHECK(apachews_group_join(clients[i], "room") && apachews_group_join(clients[i], "room"));
    }
    CHECK(apachews_group_members(server, "room", members, COUNT) == COUNT);
    CHECK(members[0] == clients[0] && members[2] == clients[2]);
    CHECK(apachews_group_members(server, "nowhere", members, COUNT) == 0);
    apachews_delivery delivery =
        apachews_group_send(server, "room", APACHEWS_TEXT, "hello", 5, clients[1]);
    CHECK(delivery.reached == 2 && delivery.skipped == 0);
    bridge_expect(bridges[0], 0x81, "hello", 5);
    bridge_expect(bridges[2], 0x81, "hello", 5);
    CHECK(!is_readable(bridges[1]));
    delivery = apachews_group_send(server, NULL, APACHEWS_TEXT, "all", 3, clients[1]);
    CHECK(delivery.reached == 2 && delivery.skipped == 0);
    bridge_expect(bridges[0], 0x81, "all", 3);
    bridge_expect(bridges[2], 0x81, "all", 3);
    CHECK(!is_readable(bridges[1]));
    delivery = apachews_group_send(server, "room", APACHEWS_TEXT, "\xFF", 1, NULL);
    CHECK(delivery.reached == 0 && errno == EILSEQ);
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "room %d", i);
        CHECK(apachews_group_join(clients[0], name));
    }
    CHECK(apachews_group_leave(clients[0], "room 50"));
    CHECK(!apachews_group_leave(clients[0], "room 50"));
    delivery = apachews_group_send(server, "room 51", APACHEWS_BINARY, "x", 1, NULL);
    CHECK(delivery.reached == 1);
    bridge_expect(bridges[0], 0x82, "x", 1);
    close(bridges[0]);
    next(server, APACHEWS_CLOSE);
    CHECK(apachews_group_members(server, "room", NULL, 0) == 2);
    CHECK(apachews_group_members(server, "room 51", NULL, 0) == 0);

    /* By a publisher on the wire. */
    int publisher = bridge_connect();
    static const char all[] = "{\"version\":1,\"group\":null}";
    CHECK(bridge_send(publisher, 0x86, all, strlen(all)) && bridge_send(publisher, 0x81, "a", 1));
    expect_nothing(server);
    static const char answer[] = "{\"version\":1,\"reached\":2,\"skipped\":0}";
    bridge_expect(publisher, 0x86, answer, strlen(answer));
    bridge_expect(bridges[1], 0x81, "a", 1);
    bridge_expect(bridges[2], 0x81, "a", 1);
    close(publisher);
    publisher = bridge_connect();
    static const char some[] = "{\"version\":1,\"group\":\"nowhere\"}";
    CHECK(bridge_send(publisher, 0x86, some, strlen(some)) && bridge_send(publisher, 0x82, "a", 1));
    expect_nothing(server);
    static const char unreached[] = "{\"version\":1,\"reached\":0,\"skipped\":0}";
    bridge_expect(publisher, 0x86, unreached, strlen(unreached));
    CHECK(bridge_send(publisher, 0x88, "", 0));
    expect_nothing(server);
    close(publisher);
    close(bridges[1]);
    close(bridges[2]);
    apachews_server_free(server);
}

static void test_answers(void)
{
    apachews_server *server = open_server(NULL);
    apachews_error error;
    int bridge = bridge_open(false);
    apachews_client *client = next(server, APACHEWS_OPEN).client;
    CHECK(!apachews_reject(client, 403, NULL, NULL, 0, &error));
    CHECK(error.code == APACHEWS_NOT_ASKED && strstr(error.text, "APACHEWS_ACCEPT") != NULL);
    CHECK(!apachews_accept(client, "chat", NULL, 0, &error) && error.code == APACHEWS_NOT_ASKED);
    CHECK(!apachews_accept(client, NULL, NULL, 0, &error) && error.code == APACHEWS_NOT_WAITING);
    CHECK(strstr(error.text, "accepts clients itself") != NULL);
    close(bridge);
    next(server, APACHEWS_CLOSE);

    bridge = bridge_open(true);
    client = next(server, APACHEWS_OPEN).client;
    CHECK(!apachews_send_text(client, "early") && errno == EPIPE);
    CHECK(apachews_server_clients(server, NULL, 0) == 0);
    CHECK(!apachews_accept(client, "other", NULL, 0, &error) && error.code == APACHEWS_BAD_ANSWER);
    apachews_pair cookie = {"Set-Cookie", "seen=1", 0};
    CHECK(apachews_accept(client, "chat", &cookie, 1, &error));
    CHECK(!apachews_accept(client, "chat", &cookie, 1, &error));
    CHECK(error.code == APACHEWS_NOT_WAITING);
    CHECK(apachews_send_text(client, "welcome"));
    static const char yes[] =
        "{\"accept\":true,\"headers\":[[\"Set-Cookie\",\"seen=1\"]],\"subprotocol\":\"chat\"}";
    bridge_expect(bridge, 0x84, yes, strlen(yes));
    bridge_expect(bridge, 0x81, "welcome", 7);
    close(bridge);
    next(server, APACHEWS_CLOSE);

    bridge = bridge_open(true);
    client = next(server, APACHEWS_OPEN).client;
    CHECK(apachews_reject(client, 404, "No such room.", NULL, 0, &error));
    static const char no[] =
        "{\"accept\":false,\"headers\":[],\"status\":404,\"body\":\"No such room.\"}";
    bridge_expect(bridge, 0x84, no, strlen(no));
    close(bridge);
    apachews_event event = next(server, APACHEWS_CLOSE);
    CHECK(event.code == 1006 && strcmp(event.reason, "it was refused") == 0);

    bridge = bridge_open(true);
    client = next(server, APACHEWS_OPEN).client;
    CHECK(apachews_close(client, 1000, "no place"));
    static const char later[] = "{\"accept\":false,\"headers\":[],\"status\":503,\"body\":\"\"}";
    bridge_expect(bridge, 0x84, later, strlen(later));
    close(bridge);
    next(server, APACHEWS_CLOSE);

    /* A bridge that moves without a request gets its close event too. */
    bridge = bridge_open(true);
    client = next(server, APACHEWS_OPEN).client;
    CHECK(bridge_send(bridge, 0x85, "", 0));
    close(bridge);
    event = next(server, APACHEWS_CLOSE);
    CHECK(event.client == client && event.code == 1006);
    apachews_server_free(server);
}

static void test_drain(void)
{
    apachews_server *server = open_server(NULL);
    apachews_event event;
    int bridge = bridge_open(false);
    apachews_client *client = next(server, APACHEWS_OPEN).client;
    int late = bridge_open(false); /* in the backlog when the file is removed */
    int asking = bridge_open(true);
    /* Longer than any wait in this test: no client may be abandoned. */
    apachews_server_drain(server, 10 * WAIT_MS);
    apachews_server_drain(server, 0);
    CHECK(access(path, F_OK) != 0);
    bridge_expect(bridge, 0x85, "", 0);
    CHECK(bridge_send(bridge, 0x81, "last", 4) && bridge_send(bridge, 0x85, "", 0));
    /* In the order in which epoll reports them. */
    int seen_last = 0, seen_moved = 0, seen_open = 0, seen_refused = 0;
    while (apachews_server_next(server, WAIT_MS, &event)) {
        CHECK(event.kind != APACHEWS_TIMEOUT);
        if (event.kind == APACHEWS_MESSAGE) {
            CHECK(event.client == client && strcmp(event.data, "last") == 0);
            CHECK(apachews_send_text(client, "answer"));
            seen_last++;
        } else if (event.kind == APACHEWS_OPEN) {
            if (!apachews_client_request(event.client)->answer_required) {
                bridge_expect(late, 0x85, "", 0);
                CHECK(bridge_send(late, 0x85, "", 0));
            } else {
                char payload[256];
                size_t length;
                CHECK(bridge_receive(asking, payload, sizeof payload, &length) == 0x84);
                close(asking);
            }
            seen_open++;
        } else if (event.kind == APACHEWS_CLOSE && event.code == 1012) {
            /* It has moved, and can still be sent to. */
            CHECK(apachews_send_text(event.client, "so long"));
            CHECK(!apachews_close(event.client, 1000, NULL));
            seen_moved++;
        } else {
            CHECK(event.kind == APACHEWS_CLOSE && event.code == 1006);
            seen_refused++;
        }
    }
    CHECK(seen_last == 1 && seen_open == 2 && seen_moved == 2 && seen_refused == 1);
    bridge_expect(bridge, 0x81, "answer", 6);
    bridge_expect(bridge, 0x81, "so long", 7);
    bridge_expect(late, 0x81, "so long", 7);
    char byte;
    CHECK(recv(bridge, &byte, 1, 0) == 0);
    CHECK(!apachews_server_next(server, -1, &event));
    apachews_server_free(server);
    close(bridge);
    close(late);
}

static void test_the_last_word_of_one_who_has_moved(void)
{
    static char block[65536];
    apachews_server *server = open_server(&(apachews_options){.max_queue_bytes = 100000});
    apachews_event event;
    int bridge = bridge_open(false);
    apachews_client *client = next(server, APACHEWS_OPEN).client;
    CHECK(apachews_group_join(client, "room"));
    apachews_server_drain(server, 10 * WAIT_MS);
    bridge_expect(bridge, 0x85, "", 0);
    CHECK(bridge_send(bridge, 0x85, "", 0));
    event = next(server, APACHEWS_CLOSE);
    CHECK(event.code == 1012 && apachews_group_members(server, "room", NULL, 0) == 1);
    /* More than the limit: it has had its last event, so no other one follows. */
    int sent = 0;
    while (apachews_send(client, APACHEWS_BINARY, block, sizeof block)) {
        CHECK(++sent < 100);
    }
    CHECK(errno == ENOBUFS && !apachews_send_text(client, "late") && errno == EPIPE);
    while (true) {
        char payload[4];
        size_t length;
        if (bridge_receive(bridge, payload, sizeof payload, &length) < 0) {
            break; /* the end of file, between two frames */
        }
        CHECK(length == sizeof block);
        CHECK(!apachews_server_next(server, 0, &event) || event.kind == APACHEWS_TIMEOUT);
    }
    CHECK(!apachews_server_next(server, -1, &event));
    apachews_server_free(server);
    close(bridge);
}

static void test_who_was_on_the_way_when_a_drain_began(void)
{
    char other[128];
    apachews_event event;
    apachews_server *server = open_server(NULL);
    /* A second link, which stays after the removal. */
    snprintf(other, sizeof other, "%s.other", path);
    CHECK(link(path, other) == 0);
    apachews_server_drain(server, 10 * WAIT_MS);
    CHECK(rename(other, path) == 0);
    int late = bridge_open(false);
    event = next(server, APACHEWS_OPEN);
    bridge_expect(late, 0x85, "", 0);
    CHECK(bridge_send(late, 0x85, "", 0));
    event = next(server, APACHEWS_CLOSE);
    CHECK(event.code == 1012);
    CHECK(!apachews_server_next(server, -1, &event));
    apachews_server_free(server);
    CHECK(unlink(path) == 0);
    close(late);
}

static void test_a_drain_that_takes_too_long(void)
{
    apachews_server *server = open_server(NULL);
    apachews_event event;
    int bridge = bridge_open(false);
    next(server, APACHEWS_OPEN);
    apachews_server_drain(server, 20);
    CHECK(apachews_server_timeout(server) >= 0 && apachews_server_timeout(server) <= 20);
    event = next(server, APACHEWS_CLOSE);
    CHECK(event.code == 1012);
    CHECK(!apachews_server_next(server, -1, &event));
    apachews_server_free(server);
    close(bridge);
}

static void test_stop(void)
{
    apachews_server *server = open_server(NULL);
    apachews_event event;
    int one = bridge_open(false);
    next(server, APACHEWS_OPEN);
    int other = bridge_open(false);
    apachews_client *client = next(server, APACHEWS_OPEN).client;
    CHECK(bridge_send_all(other, "\x01\x02qu\x80\x02it\x81\x01x", 11));
    event = next(server, APACHEWS_MESSAGE);
    apachews_server_stop(server);
    apachews_server_stop(server);
    CHECK(strcmp(event.data, "quit") == 0); /* still valid */
    CHECK(access(path, F_OK) != 0);
    bridge_expect(one, 0x88, "\x03\xE9the server closes", 19);
    CHECK(!apachews_send_text(client, "late"));
    for (int i = 0; i < 2; i++) {
        event = next(server, APACHEWS_CLOSE);
        CHECK(event.code == 1001);
    }
    CHECK(!apachews_server_next(server, -1, &event));
    CHECK(!apachews_server_next(server, -1, &event));
    apachews_server_free(server);
    close(one);
    close(other);
}

static void test_stop_flushes_clients_that_read(void)
{
    static char block[300000];
    apachews_event event;
    apachews_server *server = open_server(NULL);
    int silent = bridge_open(false);
    apachews_client *first = next(server, APACHEWS_OPEN).client;
    int slow = bridge_open(false);
    apachews_client *second = next(server, APACHEWS_OPEN).client;
    CHECK(apachews_send(first, APACHEWS_BINARY, block, sizeof block));
    CHECK(apachews_send(second, APACHEWS_BINARY, block, sizeof block));
    CHECK(apachews_client_queued_bytes(second) > 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* Reads, and gets its CLOSE, although another client does not read. */
        char payload[32];
        size_t length;
        bool is_good = bridge_receive(slow, payload, sizeof payload, &length) == 0x82 &&
                       length == sizeof block &&
                       bridge_receive(slow, payload, sizeof payload, &length) == 0x88;
        _exit(is_good ? 0 : 1);
    }
    apachews_server_stop(server);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    for (int i = 0; i < 2; i++) {
        next(server, APACHEWS_CLOSE);
    }
    CHECK(!apachews_server_next(server, -1, &event));
    apachews_server_free(server);
    close(silent);
    close(slow);
}

static void test_a_descriptor_that_the_program_closed(void)
{
    apachews_event event;
    apachews_server *server = open_server(NULL);
    int bridge = bridge_open(false);
    next(server, APACHEWS_OPEN);
    close(apachews_server_fd(server));
    next(server, APACHEWS_CLOSE);
    event = next(server, APACHEWS_ERROR);
    CHECK(event.code == EBADF && strstr(event.reason, "stopped") != NULL);
    CHECK(!apachews_server_next(server, -1, &event));
    CHECK(access(path, F_OK) != 0);
    bridge_expect(bridge, 0x88, "\x03\xE9the server closes", 19);
    close(bridge);
    apachews_server_free(server);
}

static apachews_server *to_wake;

static void wake(int number)
{
    (void)number;
    apachews_server_wake(to_wake);
}

static void test_waking(void)
{
    apachews_server *server = to_wake = open_server(NULL);
    signal(SIGALRM, wake);
    struct itimerval soon = {.it_value = {.tv_usec = 20000}};
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    next(server, APACHEWS_WAKE);
    signal(SIGALRM, SIG_DFL);
    /* The signal and the wake of its handler can be two events. */
    apachews_event event;
    while (apachews_server_next(server, 0, &event) && event.kind == APACHEWS_WAKE) {
    }
    apachews_server_wake(server);
    CHECK(is_readable(apachews_server_fd(server)));
    next(server, APACHEWS_WAKE);
    expect_nothing(server);
    apachews_server_free(server);
}

static void test_a_loop_of_ones_own(void)
{
    apachews_event event;
    apachews_server *server = open_server(NULL);
    int bridge = bridge_open(false);
    int seen[APACHEWS_ERROR + 1] = {0};
    CHECK(bridge_send(bridge, 0x81, "a", 1) && bridge_send(bridge, 0x81, "b", 1));
    bool is_on = true;
    while (is_on) {
        struct pollfd watch = {.fd = apachews_server_fd(server), .events = POLLIN};
        int wait = apachews_server_timeout(server);
        CHECK(poll(&watch, 1, wait < 0 ? WAIT_MS : wait) > 0 || wait >= 0);
        while ((is_on = apachews_server_next(server, 0, &event)) &&
               event.kind != APACHEWS_TIMEOUT) {
            seen[event.kind]++;
            if (seen[APACHEWS_MESSAGE] == 2 && event.kind == APACHEWS_MESSAGE) {
                CHECK(apachews_close(event.client, 1000, NULL));
                close(bridge); /* without an answer */
            } else if (event.kind == APACHEWS_CLOSE) {
                apachews_server_drain(server, 0);
            }
        }
    }
    CHECK(seen[APACHEWS_OPEN] == 1 && seen[APACHEWS_MESSAGE] == 2 && seen[APACHEWS_CLOSE] == 1);
    apachews_server_free(server);
}

static void test_the_original_interface(void)
{
    apachews_context *context = apachews_create(path);
    CHECK(context != NULL);
    int bridge = bridge_open(false);
    apachews_event *event = apachews_server_next_event(context);
    CHECK(apachews_event_get_type(event) == ApacheWSAcceptEvent);
    CHECK(apachews_event_get_context(event) == context);
    CHECK(apachews_server_clients(apachews_context_server(context), NULL, 0) == 1);
    apachews_client *client = apachews_event_get_client(event);
    CHECK(strcmp(apachews_client_get_language(client), "en-GB") == 0);
    SOCKET number = apachews_client_get_socket(client);
    CHECK(number >= 0);
    uint8_t *data;
    size_t length;
    /* An event without a message is read as an empty one, and its echo sends nothing. */
    CHECK(apachews_event_read(event, &data, &length) == ApacheWSSuccess && length == 0);
    CHECK(apachews_event_respond(event, data, length) == 0);
    free(data);
    CHECK(apachews_event_respond(event, (const uint8_t *)"hello", 5) == 5);
    bridge_expect(bridge, 0x81, "hello", 5);
    apachews_event_free(event);

    CHECK(bridge_send(bridge, 0x81, "text", 4) && bridge_send(bridge, 0x82, "data", 4) &&
          bridge_send(bridge, 0x81, "", 0));
    apachews_event *text = apachews_server_next_event(context);
    apachews_event *binary = apachews_server_next_event(context);
    /* The program owns an event until it frees it. */
    CHECK(apachews_event_get_type(text) == ApacheWSIOEvent);
    CHECK(apachews_event_read(text, &data, &length) == ApacheWSSuccess && length == 4);
    CHECK(memcmp(data, "text", 5) == 0);
    CHECK(apachews_event_respond(text, data, length) == 4);
    free(data);
    bridge_expect(bridge, 0x81, "text", 4);
    CHECK(apachews_event_respond(binary, (const uint8_t *)"x", 1) == 1);
    bridge_expect(bridge, 0x82, "x", 1);
    CHECK(apachews_event_respond(text, (const uint8_t *)"\xFF", 1) == 1);
    bridge_expect(bridge, 0x82, "\xFF", 1);
    /* Its last message was binary; now it is text. */
    CHECK(apachews_client_send(client, "x", 1) == 1);
    bridge_expect(bridge, 0x82, "x", 1);
    apachews_event_free(text);
    apachews_event_free(binary);
    event = apachews_server_next_event(context);
    CHECK(apachews_event_read(event, &data, &length) == ApacheWSSuccess && length == 0);
    CHECK(data != NULL && *data == '\0');
    CHECK(apachews_event_respond(event, data, length) == 0);
    free(data);
    bridge_expect(bridge, 0x81, "", 0);
    apachews_event_free(event);
    CHECK(apachews_server_broadcast(context, (const uint8_t *)"all", 3) == 3);
    bridge_expect(bridge, 0x81, "all", 3);

    CHECK(apachews_client_close(client) == 0 && apachews_client_close(client) == -1);
    bridge_expect(bridge, 0x88, "\x03\xE8", 2);
    close(bridge);
    event = apachews_server_next_event(context);
    CHECK(apachews_event_get_type(event) == ApacheWSIOEvent);
    CHECK(apachews_event_read(event, &data, &length) == ApacheWSConnectionClosed);
    CHECK(apachews_event_get_client(event) == client);
    CHECK(apachews_client_send(client, "x", 1) == -1);
    apachews_context_remove_client(context, client);
    apachews_client_free(client);
    /* The number identifies the client until the program frees its last event. */
    CHECK(apachews_client_get_socket(client) == number);
    int late_bridge = bridge_open(false);
    apachews_event *accepted = apachews_server_next_event(context);
    CHECK(apachews_event_get_type(accepted) == ApacheWSAcceptEvent);
    CHECK(apachews_client_get_socket(apachews_event_get_client(accepted)) != number);
    CHECK(apachews_client_get_socket(client) == number);
    CHECK(fcntl(number, F_GETFD) >= 0);
    apachews_event_free(event);
    CHECK(fcntl(number, F_GETFD) == -1);
    apachews_event_free(accepted);
    close(late_bridge);
    event = apachews_server_next_event(context);
    CHECK(apachews_event_read(event, &data, &length) == ApacheWSConnectionClosed);
    apachews_event_free(event);

    to_wake = NULL;
    CHECK(apachews_server_close(context) == 0);
    CHECK(apachews_server_next_event(context) == NULL);
    apachews_context_free(context);
    apachews_context_free(NULL);

    context = apachews_create_with_close_events(path);
    bridge = bridge_open(true); /* such a program accepts all clients */
    event = apachews_server_next_event(context);
    bridge_expect(bridge, 0x84, "{\"accept\":true,\"headers\":[],\"subprotocol\":null}", 47);
    apachews_event_free(event);
    close(bridge);
    event = apachews_server_next_event(context);
    apachews_context_free(context);
    /* The program owns it, also after that. */
    CHECK(apachews_event_get_type(event) == ApacheWSCloseEvent);
    CHECK(apachews_client_send(apachews_event_get_client(event), "x", 1) == -1);
    apachews_event_free(event);
    apachews_event_free(NULL);

    apachews_stream *stream = apachews_stream_new();
    for (int i = 0; i < 10000; i++) {
        CHECK(apachews_stream_append(stream, "0123456789", 10) == 0);
    }
    CHECK(apachews_stream_length(stream) == 100000);
    CHECK(memcmp(apachews_stream_data(stream) + 99990, "0123456789", 10) == 0);
    CHECK(apachews_stream_resize(stream, 5) == 0 && apachews_stream_length(stream) <= 8192);
    apachews_stream_free(stream);
    apachews_stream_free(NULL);
    apachews_initialize_os();
}

/* ---- Channels ---- */

static int count_descriptors(void)
{
    int count = 0;
    DIR *descriptors = opendir("/proc/self/fd");
    CHECK(descriptors != NULL);
    while (readdir(descriptors) != NULL) {
        count++;
    }
    closedir(descriptors);
    return count;
}

#define CHANNEL_CLIENTS 4

/* A server with clients of one bridge process, and that process's end of the channel. */
struct room {
    apachews_server *server;
    apachews_client *clients[CHANNEL_CLIENTS];
    int bridges[CHANNEL_CLIENTS];
    int channel;
};

static int bridge_open_in(const char *process)
{
    char members[100];
    snprintf(members, sizeof members, "false,\"bridge\":{\"id\":\"%s\",\"groups\":1}", process);
    return bridge_open_with(members);
}

/* Send an OFFER with copies of a descriptor. */
static bool bridge_offer(int bridge, uint32_t key, int fd, size_t copies)
{
    unsigned char frame[7] = {0x87, 5, WIRE_LANE_OFFER};
    union {
        struct cmsghdr head;
        unsigned char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec part = {frame, sizeof frame};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    wire_put_number(frame + 3, key);
    if (copies > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(copies * sizeof fd);
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(copies * sizeof fd);
        for (size_t i = 0; i < copies; i++) {
            memcpy(CMSG_DATA(head) + i * sizeof fd, &fd, sizeof fd);
        }
    }
    return sendmsg(bridge, &message, MSG_NOSIGNAL) == sizeof frame;
}

/* Offer one end of a new channel; return the other. */
static int bridge_offer_channel(int bridge, uint32_t key)
{
    struct timeval limit = {.tv_sec = WAIT_MS / 1000};
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    CHECK(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    bridge_offer(bridge, key, ends[1], 1);
    close(ends[1]);
    return ends[0];
}

#define CHANNEL_FRAME(fd, literal) bridge_expect(fd, 0x87, literal, sizeof(literal) - 1)
#define CHANNEL_SEND(fd, literal) CHECK(bridge_send(fd, 0x87, literal, sizeof(literal) - 1))

static void say_to_all(struct room *room, const char *text, size_t reached)
{
    apachews_delivery delivery =
        apachews_broadcast(room->server, APACHEWS_TEXT, text, strlen(text));
    CHECK(delivery.reached == reached && delivery.skipped == 0 && errno == 0);
}

static void expect_on_all(struct room *room, const char *text)
{
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        bridge_expect(room->bridges[i], 0x81, text, strlen(text));
    }
}

static void expect_silence(const struct room *room)
{
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        CHECK(!is_readable(room->bridges[i]));
    }
    CHECK(!is_readable(room->channel));
}

/* Open the clients and the channel; the clients are asked to join. */
static void open_room(struct room *room)
{
    room->server = open_server(&(apachews_options){.max_queue_bytes = 100000});
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        room->bridges[i] = bridge_open_in("b1");
        room->clients[i] = next(room->server, APACHEWS_OPEN).client;
    }
    say_to_all(room, "1", CHANNEL_CLIENTS);
    expect_on_all(room, "1");
    CHANNEL_FRAME(room->bridges[0], "\1");
    expect_nothing(room->server);
    /* Asked once in a second. */
    say_to_all(room, "2", CHANNEL_CLIENTS);
    expect_on_all(room, "2");
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        CHECK(!is_readable(room->bridges[i]));
    }
    room->channel = bridge_offer_channel(room->bridges[0], 5);
    expect_nothing(room->server);
    say_to_all(room, "3", CHANNEL_CLIENTS);
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        char join[] = "\2\0\0\0\5\0\0\0\1";
        join[8] = (char)(i + 1);
        bridge_expect(room->bridges[i], 0x81, "3", 1);
        bridge_expect(room->bridges[i], 0x87, join, 9);
    }
    expect_silence(room);
}

/* The same, and all clients but the last go on the channel; two of these are in a group. */
static void join_room(struct room *room)
{
    open_room(room);
    CHECK(apachews_group_join(room->clients[0], "room"));
    CHECK(apachews_group_join(room->clients[1], "room"));
    CHECK(apachews_group_join(room->clients[3], "room"));
    CHECK(apachews_send_text(room->clients[3], "late")); /* its READY is void now */
    bridge_expect(room->bridges[3], 0x81, "late", 4);
    CHECK(apachews_client_queued_bytes(room->clients[0]) == 0);
    /* READY in two pieces; 9 is unknown, 2 comes twice. */
    CHECK(bridge_send_all(room->channel, "\x87\x19\6\0\0\0", 6));
    expect_nothing(room->server);
    CHECK(bridge_send_all(room->channel, "\1\0\0\0\2\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0\x09", 21));
    expect_nothing(room->server);
    CHANNEL_FRAME(room->channel, "\x09\0\0\0\0\0\0\0\1\0\0\0\2\0\0\0\3");
    CHANNEL_FRAME(room->channel, "\x09\0\0\0\1\0\0\0\2\0\0\0\1");
    expect_silence(room);
}

/* Disconnect; the channel is closed by the server. */
static void leave_room(struct room *room, int close_events)
{
    apachews_event event;
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        close(room->bridges[i]);
    }
    for (int i = 0; i < close_events; i++) {
        next(room->server, APACHEWS_CLOSE);
    }
    apachews_server_stop(room->server);
    CHECK(!apachews_server_next(room->server, -1, &event));
    apachews_server_free(room->server);
    char byte[1000];
    ssize_t size;
    while ((size = recv(room->channel, byte, sizeof byte, 0)) > 0) {
    }
    CHECK(size == 0);
    close(room->channel);
}

static void test_messages_on_a_channel(void)
{
    struct room room;
    join_room(&room);
    apachews_server *server = room.server;
    /* One frame for all who are there; the other client asks again. */
    say_to_all(&room, "hi", 4);
    CHANNEL_FRAME(room.channel, "\x0b\0\0\0\0\0\0\x81\2hi");
    bridge_expect(room.bridges[3], 0x81, "hi", 2);
    CHANNEL_FRAME(room.bridges[3], "\2\0\0\0\5\0\0\0\5");
    expect_silence(&room);
    /* A group, without one of its members, and without one who is not a member. */
    apachews_delivery delivery =
        apachews_group_send(server, "room", APACHEWS_BINARY, "x", 1, room.clients[1]);
    CHECK(delivery.reached == 2 && delivery.skipped == 0);
    CHANNEL_FRAME(room.channel, "\x0b\0\0\0\1\0\1\0\0\0\2\x82\1x");
    bridge_expect(room.bridges[3], 0x82, "x", 1);
    delivery = apachews_group_send(server, "room", APACHEWS_TEXT, "y", 1, room.clients[2]);
    CHECK(delivery.reached == 3);
    CHANNEL_FRAME(room.channel, "\x0b\0\0\0\1\0\0\x81\1y");
    bridge_expect(room.bridges[3], 0x81, "y", 1);
    /* Its JOIN was made void by the message to the group. */
    CHANNEL_SEND(room.channel, "\6\0\0\0\5");
    expect_nothing(server);
    say_to_all(&room, "z", 4);
    CHANNEL_FRAME(room.channel, "\x0b\0\0\0\0\0\0\x81\1z");
    bridge_expect(room.bridges[3], 0x81, "z", 1);
    CHANNEL_FRAME(room.bridges[3], "\2\0\0\0\5\0\0\0\6");
    CHANNEL_SEND(room.channel, "\6\0\0\0\6");
    expect_nothing(server);
    CHANNEL_FRAME(room.channel, "\x09\0\0\0\0\0\0\0\6");
    CHANNEL_FRAME(room.channel, "\x09\0\0\0\1\0\0\0\6");
    /* One client. */
    CHECK(apachews_send_text(room.clients[2], "you"));
    CHANNEL_FRAME(room.channel, "\x0c\0\0\0\3\x81\3you");
    CHECK(apachews_send(room.clients[2], APACHEWS_BINARY, "", 0));
    CHANNEL_FRAME(room.channel, "\x0c\0\0\0\3\x82\0");
    char payload[100];
    size_t length;
    CHECK(apachews_ping(room.clients[2]));
    CHECK(bridge_receive(room.channel, payload, sizeof payload, &length) == 0x87);
    CHECK(length == 15 && memcmp(payload, "\x0c\0\0\0\3\x89\x08", 7) == 0);
    CHECK(bridge_send(room.bridges[2], 0x8A, payload + 7, 8));
    next(server, APACHEWS_PONG);
    /* Groups change. */
    CHECK(apachews_group_join(room.clients[2], "room"));
    CHANNEL_FRAME(room.channel, "\x09\0\0\0\1\0\0\0\3");
    CHECK(apachews_group_join(room.clients[2], "other"));
    CHANNEL_FRAME(room.channel, "\x09\0\0\0\2\0\0\0\3");
    CHECK(apachews_group_leave(room.clients[2], "other"));
    CHANNEL_FRAME(room.channel, "\x0a\0\0\0\2\0\0\0\3");
    /* Its last member had left, so the group has another number. */
    CHECK(apachews_group_join(room.clients[2], "other"));
    CHANNEL_FRAME(room.channel, "\x09\0\0\0\3\0\0\0\3");
    delivery = apachews_group_send(server, "other", APACHEWS_TEXT, "y", 1, room.clients[2]);
    CHECK(delivery.reached == 0 && delivery.skipped == 0);
    /* A publisher. */
    int publisher = bridge_connect();
    CHECK(bridge_send(publisher, 0x86, "{\"version\":1,\"group\":\"room\"}", 28));
    CHECK(bridge_send(publisher, 0x81, "news", 4));
    expect_nothing(server);
    expect_nothing(server);
    bridge_expect(publisher, 0x86, "{\"version\":1,\"reached\":4,\"skipped\":0}", 37);
    CHANNEL_FRAME(room.channel, "\x0b\0\0\0\1\0\0\x81\4news");
    close(publisher);
    expect_nothing(server);
    expect_silence(&room);
    leave_room(&room, 4);
}

static void test_clients_that_leave_a_channel(void)
{
    static char block[65537];
    struct room room;
    join_room(&room);
    apachews_server *server = room.server;
    /* Slow; numbers of others are ignored. */
    CHANNEL_SEND(room.channel, "\7\0\0\0\1\0\0\0\x63\0\0\0\4");
    expect_nothing(server);
    CHANNEL_FRAME(room.channel, "\x08\0\0\0\1");
    CHANNEL_FRAME(room.bridges[0], "\3");
    CHECK(apachews_send_text(room.clients[0], "own"));
    bridge_expect(room.bridges[0], 0x81, "own", 3);
    /* A group without members on the channel has no number there. */
    CHECK(apachews_group_leave(room.clients[1], "room"));
    CHANNEL_FRAME(room.channel, "\x0a\0\0\0\1\0\0\0\2");
    apachews_group_send(server, "room", APACHEWS_TEXT, "g", 1, NULL);
    bridge_expect(room.bridges[0], 0x81, "g", 1);
    bridge_expect(room.bridges[3], 0x81, "g", 1);
    expect_silence(&room);
    /* The longest message for a channel, and one that is too long. */
    CHECK(apachews_send(room.clients[1], APACHEWS_BINARY, block, 65536));
    char head[16];
    size_t length;
    CHECK(bridge_receive(room.channel, head, sizeof head, &length) == 0x87);
    CHECK(length == 5 + 10 + 65536);
    CHECK(memcmp(head, "\x0c\0\0\0\2\x82\x7f\0\0\0\0\0\1\0\0", 15) == 0);
    CHECK(apachews_send(room.clients[1], APACHEWS_BINARY, block, 65537));
    CHANNEL_FRAME(room.channel, "\x08\0\0\0\2");
    CHANNEL_FRAME(room.bridges[1], "\3");
    CHECK(bridge_receive(room.bridges[1], head, sizeof head, &length) == 0x82 && length == 65537);
    /* A CLOSE. */
    CHECK(apachews_close(room.clients[2], 1000, "bye"));
    CHANNEL_FRAME(room.channel, "\x08\0\0\0\3");
    CHANNEL_FRAME(room.bridges[2], "\3");
    bridge_expect(room.bridges[2], 0x88, "\x03\xe8" "bye", 5);
    apachews_delivery delivery = apachews_broadcast(server, APACHEWS_TEXT, "few", 3);
    CHECK(delivery.reached == 3 && delivery.skipped == 1);
    CHECK(!is_readable(room.channel));
    leave_room(&room, 4);

    /* A long broadcast, then one that brings them back. */
    join_room(&room);
    delivery = apachews_broadcast(room.server, APACHEWS_BINARY, block, sizeof block);
    CHECK(delivery.reached == 4 && delivery.skipped == 0);
    for (int i = 0; i < 3; i++) {
        char off[] = "\x08\0\0\0\1";
        off[4] = (char)(i + 1);
        bridge_expect(room.channel, 0x87, off, 5);
        CHANNEL_FRAME(room.bridges[i], "\3");
    }
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        CHECK(bridge_receive(room.bridges[i], head, sizeof head, &length) == 0x82);
        CHECK(length == sizeof block);
    }
    expect_silence(&room);
    say_to_all(&room, "again", 4);
    bridge_expect(room.bridges[2], 0x81, "again", 5);
    CHANNEL_FRAME(room.bridges[2], "\2\0\0\0\5\0\0\0\7");
    leave_room(&room, 4);

    /* One that disconnects, and one whose connection another bridge process takes over. */
    join_room(&room);
    close(room.bridges[0]);
    next(room.server, APACHEWS_CLOSE);
    CHANNEL_FRAME(room.channel, "\x08\0\0\0\1");
    CHANNEL_SEND(room.bridges[1], "\5b2");
    CHANNEL_SEND(room.bridges[3], "\5b2");
    expect_nothing(room.server);
    CHANNEL_FRAME(room.channel, "\x08\0\0\0\2");
    CHANNEL_FRAME(room.bridges[1], "\3");
    say_to_all(&room, "x", 3);
    CHANNEL_FRAME(room.channel, "\x0b\0\0\0\0\0\0\x81\1x");
    bridge_expect(room.bridges[1], 0x81, "x", 1);
    CHANNEL_FRAME(room.bridges[1], "\1"); /* this process has its own channel */
    bridge_expect(room.bridges[3], 0x81, "x", 1);
    CHANNEL_SEND(room.bridges[3], "\5"); /* an id like any other */
    CHANNEL_SEND(room.bridges[3], "\5\xff");
    CHANNEL_SEND(room.bridges[3], "\5a\0b");
    CHANNEL_SEND(room.bridges[3], "\x63");
    expect_nothing(room.server);
    room.bridges[0] = bridge_connect();
    leave_room(&room, 3);
}

static void test_a_channel_and_a_drain(void)
{
    apachews_event event;
    struct room room;
    join_room(&room);
    apachews_server_drain(room.server, WAIT_MS);
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        if (i < 3) {
            char off[] = "\x08\0\0\0\1";
            off[4] = (char)(i + 1);
            bridge_expect(room.channel, 0x87, off, 5);
            CHANNEL_FRAME(room.bridges[i], "\3");
        }
        bridge_expect(room.bridges[i], 0x85, "", 0);
    }
    say_to_all(&room, "last", 4);
    expect_on_all(&room, "last");
    expect_silence(&room);
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        CHANNEL_SEND(room.bridges[i], "\5b1"); /* too late for another channel */
        CHECK(bridge_send(room.bridges[i], 0x85, "", 0));
        next(room.server, APACHEWS_CLOSE);
    }
    CHECK(!apachews_server_next(room.server, -1, &event));
    char byte;
    CHECK(recv(room.channel, &byte, 1, 0) == 0);
    leave_room(&room, 0);
}

static void test_channels_that_end(void)
{
    static const struct {
        const char *bytes;
        size_t length;
    } bad[] = {
        {NULL, 0},                                  /* the end of file */
        {"\x81\2hi", 4},                            /* not a LANE frame */
        {"\x87\0", 2},                              /* without a kind */
        {"\x87\5\x08\0\0\0\1", 7},                  /* a kind of the other direction */
        {"\x87\4\6\0\0\0", 6},                      /* a piece of a number */
        {"\x87\x7e\x40\2", 4},                      /* longer than 4,096 numbers */
        {"\x87\xff", 2},                            /* masked */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct room room;
        join_room(&room);
        if (bad[i].bytes == NULL) {
            close(room.channel);
            room.channel = socket(AF_UNIX, SOCK_STREAM, 0);
        } else {
            CHECK(bridge_send_all(room.channel, bad[i].bytes, bad[i].length));
        }
        expect_nothing(room.server);
        say_to_all(&room, "own", 4);
        expect_on_all(&room, "own");
        for (int j = 0; j < CHANNEL_CLIENTS; j++) {
            CHECK(!is_readable(room.bridges[j])); /* a second channel is not asked for */
        }
        if (bad[i].bytes == NULL) {
            close(room.channel);
            room.channel = bridge_offer_channel(room.bridges[0], 6);
        }
        leave_room(&room, 4);
    }
}

static void test_offers_that_are_not_used(void)
{
    struct room room;
    int descriptors = count_descriptors();
    join_room(&room);
    int fds = count_descriptors();
    /* Unrequested ones: the kernel closes their descriptors. */
    CHECK(bridge_offer(room.bridges[0], 7, room.channel, 1));
    CHECK(bridge_offer(room.bridges[1], 7, room.channel, 0));
    expect_nothing(room.server);
    CHECK(count_descriptors() == fds);
    leave_room(&room, 4);

    /* Two descriptors, one that is not a socket, none at all; a client that closes. */
    for (int i = 0; i < 4; i++) {
        apachews_server *server = open_server(NULL);
        int bridges[CHANNEL_CLIENTS];
        apachews_client *client = NULL;
        for (int j = 0; j < CHANNEL_CLIENTS; j++) {
            bridges[j] = bridge_open_in("b1");
            apachews_event event = next(server, APACHEWS_OPEN);
            client = client ? client : event.client;
        }
        apachews_broadcast(server, APACHEWS_TEXT, "1", 1);
        bridge_expect(bridges[0], 0x81, "1", 1);
        CHANNEL_FRAME(bridges[0], "\1");
        int before = count_descriptors();
        int ends[2];
        int file = open("/dev/null", O_RDONLY);
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
        if (i == 3) {
            CHECK(apachews_close(client, 1000, ""));
        }
        CHECK(bridge_offer(bridges[0], 5, i == 1 ? file : ends[1], i == 2 ? 0 : i == 0 ? 2 : 1));
        close(file);
        close(ends[1]);
        expect_nothing(server);
        close(ends[0]);
        CHECK(count_descriptors() == before + (i == 0)); /* the channel */
        for (int j = 0; j < CHANNEL_CLIENTS; j++) {
            close(bridges[j]);
        }
        apachews_server_free(server);
    }
    CHECK(count_descriptors() == descriptors);
}

/* Its queue has a limit; above it messages go on the own connections. */
static void test_a_channel_that_is_not_read(void)
{
    static char block[60000];
    struct room room;
    join_room(&room);
    int sent = 0;
    while (apachews_client_queued_bytes(room.clients[0]) < 256 * 1024) {
        CHECK(apachews_send(room.clients[2], APACHEWS_BINARY, block, sizeof block));
        CHECK(++sent < 1000);
    }
    CHECK(apachews_send(room.clients[2], APACHEWS_BINARY, block, sizeof block));
    size_t queued = apachews_client_queued_bytes(room.clients[0]);
    CHECK(queued < 256 * 1024 + 2 * sizeof block);
    CHECK(apachews_send_text(room.clients[0], "own"));
    CHANNEL_FRAME(room.bridges[0], "\3");
    bridge_expect(room.bridges[0], 0x81, "own", 3);
    /* The bridge reads again: all comes, and OFF after it. */
    char head[8];
    size_t length;
    size_t offs = 0;
    for (int i = 0; i < sent + 3; i++) {
        for (int turn = 0; turn < 3; turn++) {
            expect_nothing(room.server);
        }
        if (offs == 2) {
            break;
        }
        CHECK(bridge_receive(room.channel, head, sizeof head, &length) == 0x87);
        offs += head[0] == WIRE_LANE_OFF;
        CHECK(head[0] == WIRE_LANE_OFF || head[0] == WIRE_LANE_UNICAST);
    }
    CHECK(offs == 2 && !is_readable(room.channel));
    leave_room(&room, 4);
}

/* A stop sends what a channel has in its queue: the bridge waits for OFF before CLOSE. */
static void test_a_stop_flushes_channels(void)
{
    static char block[60000];
    struct room room;
    join_room(&room);
    int sent = 0;
    while (apachews_client_queued_bytes(room.clients[0]) == 0) {
        CHECK(apachews_send(room.clients[2], APACHEWS_BINARY, block, sizeof block));
        CHECK(++sent < 1000);
    }
    pid_t reader = fork();
    CHECK(reader >= 0);
    if (reader == 0) {
        char head[8];
        size_t length;
        int offs = 0;
        while (offs < 3 && bridge_receive(room.channel, head, sizeof head, &length) == 0x87) {
            offs += head[0] == WIRE_LANE_OFF;
        }
        /* Not by _exit(): tsearch() has tagged pointers, and valgrind would report its memory as
         * lost in the child. */
        CHECK(offs == 3 && kill(getpid(), SIGKILL) == 0);
    }
    apachews_server_stop(room.server);
    int status;
    CHECK(waitpid(reader, &status, 0) == reader && status == SIGKILL);
    leave_room(&room, 4);
}

/* Memory for a channel's queue runs out: its clients end, and the others do not. */
static void test_a_channel_without_memory(void)
{
    static char block[60000];
    struct room room;
    join_room(&room);
    while (apachews_client_queued_bytes(room.clients[0]) == 0) {
        CHECK(apachews_send(room.clients[2], APACHEWS_BINARY, block, sizeof block));
    }
    allocations = 0;
    fails_at = 0;
    CHECK(apachews_send(room.clients[2], APACHEWS_BINARY, block, sizeof block));
    fails_at = -1;
    CHECK(apachews_server_timeout(room.server) == 0);
    for (int i = 0; i < 3; i++) {
        CHECK(next(room.server, APACHEWS_CLOSE).code == 1011);
    }
    say_to_all(&room, "own", 1);
    bridge_expect(room.bridges[3], 0x81, "own", 3);
    leave_room(&room, 1);

    /* A group that cannot be counted on the channel. */
    join_room(&room);
    for (int i = 0; i < 3; i++) {
        allocations = 0;
        fails_at = i;
        errno = 0;
        CHECK(!apachews_group_join(room.clients[2], "new") && errno == ENOMEM);
        fails_at = -1;
        CHECK(apachews_group_members(room.server, "new", NULL, 0) == 0);
    }
    /* A client whose groups cannot be counted does not go there. */
    say_to_all(&room, "a", 4);
    CHECK(apachews_group_join(room.clients[3], "new"));
    CHANNEL_SEND(room.channel, "\6\0\0\0\5");
    allocations = 0;
    fails_at = 0;
    expect_nothing(room.server);
    fails_at = -1;
    CHANNEL_FRAME(room.channel, "\x0b\0\0\0\0\0\0\x81\1a");
    CHECK(!is_readable(room.channel));
    CHECK(apachews_send_text(room.clients[3], "own"));
    leave_room(&room, 4);
}

static void test_the_original_broadcast_on_a_channel(void)
{
    apachews_context *context = apachews_create(path);
    CHECK(context != NULL);
    int bridges[CHANNEL_CLIENTS];
    apachews_event *event;
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        bridges[i] = bridge_open_in("b1");
        apachews_event_free(apachews_server_next_event(context));
    }
    const uint8_t text[] = "t";
    CHECK(apachews_server_broadcast(context, text, 1) == 1);
    bridge_expect(bridges[0], 0x81, "t", 1);
    CHANNEL_FRAME(bridges[0], "\1");
    int channel = bridge_offer_channel(bridges[0], 5);
    CHECK(bridge_send(bridges[0], 0x81, "m", 1));
    apachews_event_free(apachews_server_next_event(context));
    CHECK(apachews_server_broadcast(context, text, 1) == 1);
    CHANNEL_SEND(channel, "\6\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0\4");
    CHECK(bridge_send(bridges[0], 0x81, "m", 1));
    apachews_event_free(apachews_server_next_event(context));
    expect_nothing(apachews_context_server(context));
    CHANNEL_FRAME(channel, "\x09\0\0\0\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0\4");
    CHECK(apachews_server_broadcast(context, text, 1) == 1);
    CHANNEL_FRAME(channel, "\x0b\0\0\0\0\0\0\x81\1t");
    CHECK(apachews_server_broadcast(context, (const uint8_t *)"\xff", 1) == 1);
    CHANNEL_FRAME(channel, "\x0b\0\0\0\0\0\0\x82\1\xff");
    /* Clients of different types. */
    CHECK(bridge_send(bridges[1], 0x82, "m", 1));
    event = apachews_server_next_event(context);
    CHECK(apachews_server_broadcast(context, text, 1) == 1);
    CHANNEL_FRAME(channel, "\x0c\0\0\0\1\x81\1t");
    CHANNEL_FRAME(channel, "\x0c\0\0\0\2\x82\1t");
    apachews_event_free(event);
    apachews_context_free(context);
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        close(bridges[i]);
    }
    close(channel);
}

/* All that a program can do, once; the only expectation is that it ends. */
static void live(void)
{
    static char block[300000];
    apachews_event event;
    apachews_server *server =
        apachews_server_open(path, &(apachews_options){.max_queue_bytes = 1000000}, NULL);
    if (server == NULL) {
        return;
    }
    int bridges[3] = {bridge_open(false), bridge_open(true), bridge_open(false)};
    int publisher = bridge_connect();
    bridge_send(publisher, 0x86, "{\"version\":1,\"group\":\"room\"}", 28);
    bridge_send(publisher, 0x81, "published", 9);
    for (int i = 0; i < 3; i++) {
        bridge_send(bridges[i], 0x01, "in ", 3);
        bridge_send(bridges[i], 0x00, block, 50000);
        bridge_send(bridges[i], 0x80, "pieces", 6);
        for (int j = 0; j < 80; j++) {
            bridge_send(bridges[i], 0x81, "", 0); /* more than one turn */
        }
        bridge_send_all(bridges[i], "\x81", 1); /* an incomplete header */
    }
    for (int turn = 0; turn < 200 && apachews_server_next(server, 0, &event); turn++) {
        if (event.kind == APACHEWS_OPEN) {
            apachews_accept(event.client, NULL, NULL, 0, NULL);
            apachews_group_join(event.client, "room");
            apachews_group_join(event.client, "other room");
            apachews_ping(event.client);
        } else if (event.kind == APACHEWS_MESSAGE) {
            apachews_send(event.client, event.type, event.data, event.length);
            for (int i = 0; i < 4; i++) {
                apachews_group_send(server, "room", APACHEWS_BINARY, block, sizeof block, NULL);
                apachews_send_text(event.client, "small");
                apachews_broadcast(server, APACHEWS_TEXT, "all", 3);
            }
        } else if (event.kind == APACHEWS_CLOSE) {
            apachews_client_release(apachews_client_keep(event.client));
        } else if (event.kind == APACHEWS_TIMEOUT && turn > 20) {
            apachews_server_drain(server, 0);
        }
    }
    apachews_server_free(server);
    for (int i = 0; i < 3; i++) {
        close(bridges[i]);
    }
    close(publisher);
}

/* The same, with a channel that is read at the end only. */
static void live_on_a_channel(void)
{
    static char block[60000];
    apachews_event event;
    apachews_server *server =
        apachews_server_open(path, &(apachews_options){.max_queue_bytes = 1000000}, NULL);
    if (server == NULL) {
        return;
    }
    int bridges[CHANNEL_CLIENTS];
    int channel = -1;
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        bridges[i] = bridge_open_in(i < 3 ? "b1" : "b2");
    }
    for (int turn = 0; turn < 40 && apachews_server_next(server, 0, &event); turn++) {
        if (event.kind == APACHEWS_OPEN) {
            apachews_group_join(event.client, "room");
        } else if (event.kind == APACHEWS_TIMEOUT) {
            apachews_broadcast(server, APACHEWS_TEXT, "all", 3);
            if (channel < 0) {
                channel = bridge_offer_channel(bridges[0], 5);
            } else {
                bridge_send_all(channel, "\x87\x0d\6\0\0\0\1\0\0\0\2\0\0", 12);
                bridge_send_all(channel, "\0\3\x87\5\7\0\0\0\3", 9);
            }
            apachews_group_send(server, "room", APACHEWS_BINARY, block, sizeof block, NULL);
            bridge_send(bridges[1], 0x81, "", 0);
        } else if (event.kind == APACHEWS_MESSAGE) {
            apachews_group_join(event.client, "other room");
            apachews_send_text(event.client, "small");
            apachews_group_send(server, "other room", APACHEWS_TEXT, "x", 1, event.client);
            apachews_group_leave(event.client, "other room");
        }
    }
    apachews_server_drain(server, 0);
    /* First, so that the server does not wait for them. */
    for (int i = 0; i < CHANNEL_CLIENTS; i++) {
        close(bridges[i]);
    }
    if (channel >= 0) {
        close(channel);
    }
    apachews_server_free(server);
}

static apachews_context *to_close;

static void close_it(int number)
{
    (void)number;
    apachews_server_close(to_close);
}

static void live_as_the_original(void)
{
    apachews_context *context = to_close = apachews_create(path);
    if (context == NULL) {
        return;
    }
    /* A client or a close without memory for it has no event. */
    struct itimerval soon = {.it_value = {.tv_usec = 200000}};
    struct itimerval never = {.it_value = {0}};
    signal(SIGALRM, close_it);
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    int bridge = bridge_open(false);
    bridge_send(bridge, 0x81, "hello", 5);
    close(bridge);
    apachews_event *event;
    while ((event = apachews_server_next_event(context)) != NULL) {
        uint8_t *data;
        size_t length;
        apachews_status status = apachews_event_read(event, &data, &length);
        apachews_client_get_language(apachews_event_get_client(event));
        apachews_server_broadcast(context, (const uint8_t *)"all", 3);
        free(data);
        apachews_event_free(event);
        if (status == ApacheWSConnectionClosed) {
            break;
        }
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    signal(SIGALRM, SIG_DFL);
    apachews_context_free(context);
}

/* A signal may interrupt any code, so its handler only closes and returns. */
static void test_closing_in_a_signal_handler(void)
{
    static const char close_payload[] = "\x03\xE9the server closes";
    for (int is_freed_at_once = 0; is_freed_at_once < 2; is_freed_at_once++) {
        apachews_context *context = to_close = apachews_create(path);
        CHECK(context != NULL);
        int bridge = bridge_open(false);
        apachews_event *event = apachews_server_next_event(context);
        signal(SIGALRM, close_it);
        CHECK(raise(SIGALRM) == 0);
        signal(SIGALRM, SIG_DFL);
        CHECK(apachews_event_respond(event, (const uint8_t *)"still", 5) == 5);
        apachews_event_free(event);
        CHECK(access(path, F_OK) == 0);
        if (!is_freed_at_once) {
            CHECK(apachews_server_next_event(context) == NULL);
            CHECK(access(path, F_OK) != 0);
            CHECK(apachews_server_next_event(context) == NULL);
        }
        apachews_context_free(context);
        CHECK(access(path, F_OK) != 0);
        bridge_expect(bridge, 0x81, "still", 5);
        bridge_expect(bridge, 0x88, close_payload, sizeof close_payload - 1);
        close(bridge);
    }
    /* Outside of the loop it closes at once. */
    apachews_context *context = apachews_create(path);
    CHECK(apachews_server_close(context) == 0 && access(path, F_OK) != 0);
    apachews_context_free(context);
}

static void test_memory_that_runs_out(void)
{
    static void (*const lives[])(void) = {live, live_on_a_channel, live_as_the_original};
    for (size_t i = 0; i < sizeof lives / sizeof lives[0]; i++) {
        allocations = 0;
        lives[i]();
        long count = allocations;
        CHECK(count > 10 && count < 5000);
        for (fails_at = 0; fails_at < count; fails_at++) {
            allocations = 0;
            lives[i]();
        }
        fails_at = -1;
        CHECK(access(path, F_OK) != 0);
    }
}

int main(void)
{
    int descriptors = count_descriptors();
    const char *temporary = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%.40s/awsXXXXXX", temporary ? temporary : "/tmp");
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/test.ws", directory);
    setvbuf(stdout, NULL, _IONBF, 0);
    test_where_it_cannot_listen();
    test_files();
    test_a_relative_path();
    test_a_child_that_outlives_it();
    test_a_start_that_fails();
    test_a_directory_that_stays_locked();
    test_what_systemd_is_told();
    test_messages();
    test_a_flood_delays_the_others_by_a_turn();
    test_ends();
    test_kept_clients();
    test_slow_clients();
    test_what_waits_is_sent_in_order();
    test_groups();
    test_answers();
    test_drain();
    test_the_last_word_of_one_who_has_moved();
    test_who_was_on_the_way_when_a_drain_began();
    test_a_drain_that_takes_too_long();
    test_stop();
    test_stop_flushes_clients_that_read();
    test_a_descriptor_that_the_program_closed();
    test_waking();
    test_a_loop_of_ones_own();
    test_the_original_interface();
    test_closing_in_a_signal_handler();
    test_messages_on_a_channel();
    test_clients_that_leave_a_channel();
    test_a_channel_and_a_drain();
    test_channels_that_end();
    test_offers_that_are_not_used();
    test_a_channel_that_is_not_read();
    test_a_stop_flushes_channels();
    test_a_channel_without_memory();
    test_the_original_broadcast_on_a_channel();
    test_memory_that_runs_out();
    char name[96];
    snprintf(name, sizeof name, "%s/file.ws", directory);
    CHECK(unlink(name) == 0);
    CHECK(rmdir(directory) == 0); /* the directory is empty */
    CHECK(count_descriptors() == descriptors);
    puts("server: all checks passed");
    return 0;
}
