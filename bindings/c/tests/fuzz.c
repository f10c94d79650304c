/* A coverage-guided fuzzer for code that handles untrusted bytes, and its targets.
 *
 *     fuzz TARGET SECONDS SEED LAST FILE…
 *     fuzz TARGET replay FILE
 *
 * The files are the initial inputs.  The current input is in the file LAST, so that it can be
 * replayed after a crash.  The same seed generates the same inputs.
 *
 * How this works: gcc's -fsanitize-coverage=trace-pc calls __sanitizer_cov_trace_pc() at every
 * edge of the library.  An input that reaches a new edge, or an edge more often, is kept and
 * mutated, so clang is not needed.  Sanitizers detect memory errors; the targets check the rest.
 */
#include "system.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "apachews.h"
#include "check.h"
#include "client.h"
#include "json.h"
#include "language.h"
#include "queue.h"
#include "request.h"
#include "state.h"
#include "utf8.h"
#include "wire.h"

/* Longer inputs find the same errors, more slowly. */
#define MAX_INPUT 2048
#define MAX_CORPUS 20000
#define MAP_SIZE 16384

/* ---- Targets ---- */

struct digest {
    uint64_t hash;
    size_t items;
    bool is_over;
};

static void add(struct digest *digest, const void *data, size_t length)
{
    const unsigned char *bytes = data;
    for (size_t i = 0; i < length; i++) {
        digest->hash = (digest->hash ^ bytes[i]) * 0x100000001B3u;
    }
}

static void look_at(struct digest *digest, const struct wire_item *item, uint64_t max_message)
{
    CHECK(!digest->is_over); /* no item after the end */
    add(digest, &item->kind, sizeof item->kind);
    add(digest, &item->code, sizeof item->code);
    add(digest, item->text, strlen(item->text));
    if (item->kind == WIRE_TEXT || item->kind == WIRE_BINARY) {
        CHECK(item->length <= max_message && item->data[item->length] == '\0');
        CHECK(item->kind != WIRE_TEXT || utf8_is_valid(item->data, item->length));
    }
    if (item->data != NULL) {
        add(digest, item->data, item->length);
    }
    if (item->kind == WIRE_OPEN) {
        add(digest, item->request->facts.uri, strlen(item->request->facts.uri));
    }
    digest->items++;
    digest->is_over = item->kind == WIRE_CLOSE || item->kind == WIRE_MOVE ||
                      item->kind == WIRE_VIOLATION;
}

static struct digest read_stream(const unsigned char *data, size_t length, uint64_t max_message,
                                 unsigned cuts)
{
    struct digest digest = {.hash = 0xCBF29CE484222325u};
    struct wire_reader reader;
    wire_reader_init(&reader, max_message);
    for (size_t at = 0; at < length;) {
        cuts = cuts * 1103515245 + 12345;
        size_t size = cuts == 12345 ? length : 1 + (cuts >> 20) % 40;
        if (size > length - at) {
            size = length - at;
        }
        unsigned char *copy = malloc(size + 1);
        CHECK(copy != NULL);
        memcpy(copy, data + at, size);
        wire_reader_feed(&reader, copy, size);
        struct wire_item item;
        while (wire_reader_next(&reader, &item), item.kind != WIRE_NOTHING) {
            look_at(&digest, &item, max_message);
            request_free(item.request);
            free(item.group);
            free(item.owned);
        }
        free(copy);
        at += size;
    }
    wire_reader_free(&reader);
    return digest;
}

/* A stream gives the same items, wherever it is split.  The first byte selects the positions and
 * the limit of a message. */
static void fuzz_wire(const unsigned char *data, size_t length)
{
    if (length < 1) {
        return;
    }
    uint64_t max_message = data[0] & 1 ? 20 : 2000;
    struct digest whole = read_stream(data + 1, length - 1, max_message, 0);
    struct digest cut = read_stream(data + 1, length - 1, max_message, 1 + data[0]);
    CHECK(whole.hash == cut.hash && whole.items == cut.items);
}

static void look_at_value(const struct json_document *document, const struct json_value *value)
{
    if (value->type == JSON_STRING) {
        CHECK(utf8_is_valid(value->text, value->length) && value->text[value->length] == '\0');
    } else if (value->type == JSON_ARRAY || value->type == JSON_OBJECT) {
        uint32_t count = 0;
        for (const struct json_value *item = json_first(document, value); item != NULL;
             item = json_next(document, item)) {
            look_at_value(document, item);
            CHECK(value->type == JSON_ARRAY || count % 2 == 1 || item->type == JSON_STRING);
            count++;
        }
        CHECK(count == value->count && (value->type == JSON_ARRAY || count % 2 == 0));
    }
    json_member(document, value, "a");
    json_is_true(value);
}

static void fuzz_json(const unsigned char *data, size_t length)
{
    struct json_document document;
    if (json_parse(&document, data, length) == JSON_OK) {
        CHECK(utf8_is_valid(data, length));
        look_at_value(&document, json_root(&document));
    }
    json_free(&document);
}

static void fuzz_request(const unsigned char *data, size_t length)
{
    struct request *request;
    const char *problem = NULL;
    char value[16];
    char *group;
    if (request_decode(data, length, &request, &problem) == REQUEST_OK) {
        const apachews_request *facts = &request->facts;
        apachews_request_header(facts, "host");
        apachews_request_env(facts, "GEO");
        long size = apachews_request_query(facts, "a", value, sizeof value);
        const char *query = facts->rewritten_query ? facts->rewritten_query : facts->uri;
        CHECK(size < 0 || (size_t)size <= strlen(query));
        CHECK(utf8_is_valid(facts->uri, strlen(facts->uri)));
        char *language = preferred_language(facts->uri);
        CHECK(language == NULL || strstr(facts->uri, language) != NULL);
        free(language);
        request_free(request);
    } else {
        CHECK(request == NULL && problem != NULL);
    }
    if (publish_decode(data, length, &group, &problem) == REQUEST_OK) {
        free(group);
    }
}

/* Two sockets with small buffers: whole frames arrive, in order. */
static void fuzz_queue(const unsigned char *data, size_t length)
{
    static unsigned char payload[200000];
    int sockets[2];
    int size = 4096;
    struct queue queue = {0};
    struct wire_reader reader;
    unsigned written = 0, seen = 0;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets) == 0);
    CHECK(setsockopt(sockets[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    wire_reader_init(&reader, sizeof payload);
    reader.has_opened = true;
    if (length > 200) {
        length = 200;
    }
    for (size_t i = 0; i <= length; i++) {
        int operation = i < length ? data[i] >> 5 : 7;
        size_t argument = i < length ? data[i] & 31 : 0;
        size_t wanted = 4 + argument * argument * (operation & 1 ? 40 : 2);
        written++;
        memcpy(payload, &written, 4);
        switch (operation) {
        case 0:
        case 1:
            CHECK(queue_write(&queue, sockets[0], 0x82, payload, wanted) == QUEUE_DONE);
            break;
        case 2:
        case 3: {
            struct frame *frame = frame_new(0x82, payload, wanted);
            CHECK(frame != NULL);
            CHECK(queue_write_frame(&queue, sockets[0], frame) == QUEUE_DONE);
            frame_release(frame);
            break;
        }
        case 4:
            queue_drop(&queue);
            break;
        case 5:
            CHECK(queue_flush(&queue, sockets[0]) == QUEUE_DONE);
            break;
        default:
            for (size_t turn = 0; turn <= argument || (i == length && queue.first != NULL);
                 turn++) {
                unsigned char buffer[4097];
                ssize_t got = recv(sockets[1], buffer, argument % 2 ? 100 : 4096, 0);
                struct wire_item item;
                wire_reader_feed(&reader, buffer, got > 0 ? (size_t)got : 0);
                while (wire_reader_next(&reader, &item), item.kind != WIRE_NOTHING) {
                    unsigned number;
                    CHECK(item.kind == WIRE_BINARY && item.length >= 4);
                    memcpy(&number, item.data, 4);
                    CHECK(number > seen && number <= written);
                    seen = number;
                    free(item.owned);
                }
                CHECK(queue_flush(&queue, sockets[0]) == QUEUE_DONE);
            }
            break;
        }
        CHECK((queue.bytes == 0) == (queue.first == NULL));
    }
    close(sockets[1]);
    CHECK(queue_write(&queue, sockets[0], 0x82, payload, 4) == QUEUE_DEAD);
    queue_clear(&queue);
    CHECK(queue.bytes == 0);
    close(sockets[0]);
    wire_reader_free(&reader);
}

/* ---- A server: each input byte is an action of a bridge or of the program ---- */

#define BRIDGES 4
#define TRACKED 64
#define OPEN_TEXT                                                                               \
    "{\"version\":1,\"id\":\"1\",\"resumed\":false,\"request\":{\"method\":\"GET\",\"uri\":\"/\","     \
    "\"headers\":[]},\"remote\":[\"::1\",1],\"local\":[\"::1\",80],\"scheme\":\"ws\",\"user\":null," \
    "\"vhost\":\"x\",\"subprotocols\":{\"offered\":[\"a\"],\"chosen\":null},\"env\":{},"           \
    "\"answer_required\":"

/* The linker wraps these: inputs make allocations fail and time pass. */
static long allocations_left = -1; /* until one fails; -1: none fails */
static time_t seconds_passed;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
char *__real_strdup(const char *text);
int __real_clock_gettime(clockid_t clock, struct timespec *now);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
char *__wrap_strdup(const char *text);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

static bool may_allocate(void)
{
    if (allocations_left < 0 || allocations_left-- > 0) {
        return true;
    }
    errno = ENOMEM;
    return false;
}

void *__wrap_malloc(size_t size)
{
    return may_allocate() ? __real_malloc(size) : NULL;
}

void *__wrap_calloc(size_t count, size_t size)
{
    return may_allocate() ? __real_calloc(count, size) : NULL;
}

void *__wrap_realloc(void *memory, size_t size)
{
    return may_allocate() ? __real_realloc(memory, size) : NULL;
}

char *__wrap_strdup(const char *text)
{
    return may_allocate() ? __real_strdup(text) : NULL;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = __real_clock_gettime(clock, now);
    now->tv_sec += seconds_passed;
    return result;
}

/* The events of a client so far. */
struct track {
    apachews_client *client;
    bool has_ended;
    bool is_kept;
};

struct play {
    apachews_server *server;
    int bridges[BRIDGES];
    struct track tracks[TRACKED];
    size_t track_count;
    apachews_event event; /* the current one */
    struct digest digest; /* of the data it points to */
    bool is_over;
};

static struct digest digest_of(const apachews_event *event)
{
    struct digest digest = {0};
    if (event->kind == APACHEWS_MESSAGE) {
        CHECK(event->data[event->length] == '\0');
        add(&digest, event->data, event->length);
    }
    CHECK(event->reason != NULL);
    add(&digest, event->reason, strlen(event->reason));
    if (event->client != NULL) {
        const char *id = apachews_client_request(event->client)->id;
        add(&digest, id, strlen(id));
    }
    return digest;
}

/* Get the next event, and check it against the client's events so far; false: no event. */
static bool take(struct play *play)
{
    /* The data of the last event must be valid and unchanged until now. */
    CHECK(digest_of(&play->event).hash == play->digest.hash);
    play->is_over = !apachews_server_next(play->server, 0, &play->event);
    play->digest = digest_of(&play->event);
    apachews_client *client = play->event.client;
    if (play->is_over || play->event.kind == APACHEWS_TIMEOUT) {
        CHECK(client == NULL);
        return false;
    }
    CHECK(play->event.kind != APACHEWS_ERROR || play->event.code == ENOMEM);
    if (client == NULL) {
        CHECK(play->event.kind == APACHEWS_WAKE || play->event.kind == APACHEWS_INVALID ||
              play->event.kind == APACHEWS_ERROR);
        return true;
    }
    struct track *track = apachews_client_data(client);
    if (play->event.kind == APACHEWS_OPEN) {
        CHECK(track == NULL && play->track_count < TRACKED);
        track = &play->tracks[play->track_count++];
        *track = (struct track){.client = client};
        apachews_client_set_data(client, track);
    }
    CHECK(track != NULL && track->client == client && !track->has_ended);
    if (play->event.kind == APACHEWS_CLOSE) {
        track->has_ended = true;
        CHECK(apachews_client_has_ended(client));
    }
    return true;
}

/* The client that an argument selects: of the current event, or a connected one. */
static apachews_client *pick(const struct play *play, size_t argument)
{
    apachews_client *clients[TRACKED];
    size_t count = apachews_server_clients(play->server, clients, TRACKED);
    return argument % 2 || count == 0 ? play->event.client : clients[argument / 2 % count];
}

static void bridge_say(int fd, int first, const void *payload, size_t length)
{
    unsigned char bytes[WIRE_MAX_HEADER + 1024];
    size_t size = wire_encode_header(bytes, first, length);
    memcpy(bytes + size, payload, length);
    (void)!send(fd, bytes, size + length, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void bridge_come(struct play *play, const struct sockaddr_un *address, size_t argument)
{
    int *fd = &play->bridges[argument % BRIDGES];
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK(*fd >= 0);
    (void)!connect(*fd, (const struct sockaddr *)address, sizeof *address); /* may fail */
    if (argument < 8) {
        const char *text = argument < 4 ? OPEN_TEXT "false}" : OPEN_TEXT "true}";
        bridge_say(*fd, 0x83, text, strlen(text));
    } else if (argument < 12) {
        const char *text = argument % 2 ? "{\"version\":1,\"group\":\"a\"}" : "{\"version\":1}";
        bridge_say(*fd, 0x86, text, strlen(text));
    }
}

static void bridge_act(const struct play *play, int fd, size_t argument)
{
    static const char block[1000];
    unsigned char buffer[65536];
    apachews_client *client = play->event.client;
    switch (argument) {
    case 0:
        bridge_say(fd, 0x81, "text", 4);
        break;
    case 1:
        bridge_say(fd, 0x02, "\xFF", 1);
        break;
    case 2:
        bridge_say(fd, 0x80, "\xFF", 1);
        break;
    case 3:
        bridge_say(fd, 0x88, "\x0F\xA0 bye", 6);
        break;
    case 4:
        bridge_say(fd, 0x85, "", 0);
        break;
    case 5:
        bridge_say(fd, 0x8A, client != NULL ? client->ping : buffer, client != NULL ? 8 : 0);
        break;
    case 6:
        (void)!send(fd, "\x81", 1, MSG_NOSIGNAL); /* half a header */
        break;
    case 7:
        bridge_say(fd, 0x82, block, sizeof block); /* over the limit */
        break;
    case 8:
        shutdown(fd, SHUT_WR);
        break;
    case 9:
        shutdown(fd, SHUT_RDWR);
        break;
    case 10:
        for (int i = 0; i < 50; i++) { /* more than a publisher's queue */
            bridge_say(fd, 0x81, "", 0);
        }
        break;
    default:
        while (recv(fd, buffer, sizeof buffer, 0) == sizeof buffer && argument == 15) {
        }
        break;
    }
}

/* Stopping takes a second then. */
static bool is_anybody_slow(const apachews_server *server)
{
    const apachews_client *client = server->first;
    while (client != NULL && client->queue.first == NULL) {
        client = client->next;
    }
    return client != NULL;
}

static void program_act(struct play *play, size_t operation, size_t argument)
{
    static const char block[150000];
    static const char *const groups[] = {"a", "b", NULL};
    const char *group = groups[argument % 3];
    apachews_client *client = pick(play, argument);
    switch (operation) {
    case 0:
        apachews_broadcast(play->server, APACHEWS_BINARY, block, argument * 10000);
        break;
    case 1:
        apachews_group_send(play->server, group, APACHEWS_TEXT, "group", 5, client);
        break;
    case 2:
        if (argument == 13) {
            apachews_server_drain(play->server, 30000);
        } else if (argument == 14 && !is_anybody_slow(play->server)) {
            apachews_server_stop(play->server);
        } else if (argument == 15) {
            apachews_server_wake(play->server);
        } else if (argument == 12) {
            seconds_passed += 11; /* longer than all timeouts except draining */
        } else if (argument == 11) {
            seconds_passed += 60;
        } else if (argument > 4) {
            allocations_left = (long)argument - 5;
        } else if (play->event.kind == APACHEWS_MESSAGE) {
            apachews_send(play->event.client, play->event.type, play->event.data,
                          play->event.length);
        }
        break;
    default:
        break;
    }
    struct track *track = client != NULL ? apachews_client_data(client) : NULL;
    if (track == NULL) {
        return; /* no event of it yet */
    }
    switch (operation) {
    case 3:
        apachews_send(client, APACHEWS_BINARY, block, argument * 10000);
        break;
    case 4:
        apachews_close(client, 1000 + (int)argument, "bye");
        break;
    case 5:
        apachews_accept(client, argument & 2 ? "a" : NULL, NULL, 0, NULL);
        break;
    case 6:
        apachews_reject(client, 404, NULL, NULL, 0, NULL);
        break;
    case 7:
        apachews_ping(client);
        break;
    case 8:
        apachews_group_join(client, argument & 2 ? "a" : "b");
        break;
    case 9:
        apachews_group_leave(client, argument & 2 ? "a" : "b");
        break;
    case 10:
        if (!track->is_kept) {
            track->is_kept = true;
            apachews_client_keep(client);
        }
        break;
    default:
        break;
    }
}

static char directory[16];

static void remove_directory(void)
{
    CHECK(rmdir(directory) == 0);
}

/* Each client has one OPEN, its messages, and one CLOSE; event data stays valid; no leaks. */
static void fuzz_server(const unsigned char *data, size_t length)
{
    struct play play = {.bridges = {-1, -1, -1, -1}, .event = {.reason = ""}};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    apachews_options options = {.max_message_bytes = 500, .max_queue_bytes = 20000};
    if (directory[0] == '\0') {
        strcpy(directory, "/tmp/awsXXXXXX");
        CHECK(mkdtemp(directory) != NULL && atexit(remove_directory) == 0);
    }
    snprintf(address.sun_path, sizeof address.sun_path, "%s/fuzz.ws", directory);
    play.server = apachews_server_open(address.sun_path, &options, NULL);
    CHECK(play.server != NULL);
    play.digest = digest_of(&play.event);
    size_t comings = 0;
    seconds_passed = 0;
    for (size_t i = 0; i < length && i < 200; i++) {
        size_t operation = data[i] >> 4;
        size_t argument = data[i] & 15;
        if (operation == 0) {
            if (comings++ < TRACKED) {
                bridge_come(&play, &address, argument);
            }
        } else if (operation < 5) {
            int fd = play.bridges[operation - 1];
            if (fd >= 0) {
                bridge_act(&play, fd, argument);
            }
        } else if (operation == 5) {
            for (size_t turn = 0; turn <= argument && take(&play); turn++) {
            }
        } else {
            program_act(&play, operation - 6, argument);
        }
    }
    allocations_left = -1;
    for (int i = 0; i < BRIDGES; i++) {
        if (play.bridges[i] >= 0) {
            close(play.bridges[i]);
        }
    }
    while (!play.is_over) {
        if (!take(&play)) {
            apachews_server_stop(play.server);
        }
    }
    for (size_t i = 0; i < play.track_count; i++) {
        CHECK(play.tracks[i].has_ended);
    }
    apachews_server_free(play.server);
    for (size_t i = 0; i < play.track_count; i++) {
        if (play.tracks[i].is_kept) {
            apachews_client *client = play.tracks[i].client;
            CHECK(!apachews_send_text(client, "late") && !apachews_close(client, 1000, NULL));
            CHECK(!apachews_group_join(client, "a") && !apachews_ping(client));
            CHECK(!apachews_accept(client, NULL, NULL, 0, NULL));
            apachews_client_release(client);
        }
    }
    CHECK(access(address.sun_path, F_OK) != 0);
}

static const struct target {
    const char *name;
    void (*run)(const unsigned char *data, size_t length);
} targets[] = {
    {"wire", fuzz_wire},
    {"json", fuzz_json},
    {"request", fuzz_request},
    {"queue", fuzz_queue},
    {"server", fuzz_server},
};

/* ---- The fuzzer ---- */

static unsigned char hits[MAP_SIZE]; /* of the current input */
static unsigned char seen[MAP_SIZE]; /* of all inputs: counts, a bit for each power of two */

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    uintptr_t place = (uintptr_t)__builtin_return_address(0) -
                      (uintptr_t)&__sanitizer_cov_trace_pc;
    unsigned char *hit = &hits[(place ^ place >> 16) % MAP_SIZE];
    *hit += *hit < 255;
}

struct input {
    size_t length;
    unsigned char data[MAX_INPUT];
};

static struct input *corpus[MAX_CORPUS];
static size_t corpus_count;
static uint64_t random_state;

static uint64_t choose(uint64_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % below;
}

static bool has_reached_something(void)
{
    bool is_new = false;
    for (size_t begin = 0; begin < MAP_SIZE; begin += 8) {
        uint64_t eight;
        memcpy(&eight, hits + begin, 8);
        for (size_t i = begin; eight != 0 && i < begin + 8; i++) {
            if (hits[i] != 0) {
                unsigned char bit = (unsigned char)(1u << (31 - __builtin_clz(hits[i])));
                is_new = is_new || !(seen[i] & bit);
                seen[i] |= bit;
            }
        }
    }
    return is_new;
}

static void keep(const struct input *input)
{
    if (corpus_count < MAX_CORPUS) {
        struct input *kept = malloc(sizeof *kept);
        CHECK(kept != NULL);
        *kept = *input;
        corpus[corpus_count++] = kept;
    }
}

static void insert(struct input *input, size_t at, const unsigned char *data, size_t length)
{
    if (length > MAX_INPUT - input->length) {
        length = MAX_INPUT - input->length;
    }
    memmove(input->data + at + length, input->data + at, input->length - at);
    memcpy(input->data + at, data, length);
    input->length += length;
}

static void mutate(struct input *input)
{
    static const unsigned char bytes[] = {0,    1,    125,  126, 127, 128, 255, 0x81, 0x82, 0x80,
                                          0x83, 0x86, 0x88, '"', '\\', '{', '[', ',', ':',  '0'};
    static const char *const words[] = {"\\u0000", "\\ud83d\\ude42", "\"version\":1", "null", "[[",
                                        "1e9", "\"env\":{", "\x7E\x01\x00", "\xC3\xA9"};
    unsigned char piece[64];
    size_t at = choose(input->length + 1);
    size_t rest = input->length - at;
    switch (choose(9)) {
    case 0:
        if (rest > 0) {
            input->data[at] ^= (unsigned char)(1u << choose(8));
        }
        break;
    case 1:
        if (rest > 0) {
            input->data[at] = bytes[choose(sizeof bytes)];
        }
        break;
    case 2:
        piece[0] = (unsigned char)choose(256);
        insert(input, at, piece, 1);
        break;
    case 3: {
        const char *word = words[choose(sizeof words / sizeof words[0])];
        size_t size = strlen(word) + (word[0] == '\x7E');
        insert(input, at, (const unsigned char *)word, size);
        break;
    }
    case 4:
        if (rest > 0) {
            size_t size = 1 + choose(rest < 16 ? rest : 16);
            memmove(input->data + at, input->data + at + size, rest - size);
            input->length -= size;
        }
        break;
    case 5:
        if (rest > 0) {
            size_t size = 1 + choose(rest < sizeof piece ? rest : sizeof piece);
            memcpy(piece, input->data + at, size);
            insert(input, choose(input->length + 1), piece, size);
        }
        break;
    case 6: {
        const struct input *other = corpus[choose(corpus_count)];
        if (other->length > 0) {
            size_t from = choose(other->length);
            size_t size = 1 + choose(other->length - from);
            insert(input, at, other->data + from, size);
        }
        break;
    }
    case 7:
        input->length = at;
        break;
    default:
        if (rest > 0) {
            input->data[at] = (unsigned char)choose(256);
        }
        break;
    }
}

static void read_input(struct input *input, const char *name)
{
    int fd = open(name, O_RDONLY);
    CHECK(fd >= 0);
    ssize_t length = read(fd, input->data, sizeof input->data);
    CHECK(length >= 0);
    input->length = (size_t)length;
    close(fd);
}

/* The last input, in a file that survives a crash. */
struct last {
    int fd;
    unsigned char *data;
};

static void run(const struct target *target, const struct input *input, struct last *last)
{
    CHECK(ftruncate(last->fd, (off_t)input->length) == 0);
    memcpy(last->data, input->data, input->length);
    /* Of exact size: the sanitizer detects reads after the end. */
    unsigned char *copy = malloc(input->length + (input->length == 0));
    CHECK(copy != NULL);
    memcpy(copy, input->data, input->length);
    memset(hits, 0, sizeof hits);
    target->run(copy, input->length);
    free(copy);
}

static void fuzz(const struct target *target, double seconds, struct last *last)
{
    struct timespec begun, now;
    unsigned long count = 0;
    double passed = 0;
    __real_clock_gettime(CLOCK_MONOTONIC, &begun);
    for (size_t i = 0, seeds = corpus_count; i < seeds; i++) {
        run(target, corpus[i], last);
        has_reached_something();
    }
    while (passed < seconds) {
        struct input input = *corpus[choose(2) ? choose(corpus_count)
                                               : corpus_count - 1 - choose(corpus_count) / 8];
        for (uint64_t i = 1 + choose(6); i > 0; i--) {
            mutate(&input);
        }
        run(target, &input, last);
        if (has_reached_something()) {
            keep(&input);
        }
        if (++count % 64 == 0) {
            __real_clock_gettime(CLOCK_MONOTONIC, &now);
            passed = (double)(now.tv_sec - begun.tv_sec) +
                     (double)(now.tv_nsec - begun.tv_nsec) / 1e9;
        }
    }
    size_t places = 0;
    for (size_t i = 0; i < MAP_SIZE; i++) {
        places += seen[i] != 0;
    }
    printf("%-8s %9lu executions %7.0f/s  coverage %5zu edges  %5zu inputs kept\n", target->name,
           count, (double)count / passed, places, corpus_count);
}

int main(int argc, char **argv)
{
    CHECK(argc >= 4);
    const struct target *target = targets;
    while (strcmp(target->name, argv[1]) != 0) {
        target++;
        CHECK(target < targets + sizeof targets / sizeof targets[0]);
    }
    struct input input;
    if (strcmp(argv[2], "replay") == 0) {
        read_input(&input, argv[3]);
        target->run(input.data, input.length);
        printf("%s keeps its promises\n", target->name);
        return 0;
    }
    random_state = 0x9E3779B97F4A7C15u ^ strtoull(argv[3], NULL, 10);
    for (int i = 5; i < argc; i++) {
        read_input(&input, argv[i]);
        keep(&input);
    }
    CHECK(argc > 4 && corpus_count > 0);
    struct last last = {.fd = open(argv[4], O_RDWR | O_CREAT | O_TRUNC, 0600)};
    CHECK(last.fd >= 0);
    last.data = mmap(NULL, MAX_INPUT, PROT_READ | PROT_WRITE, MAP_SHARED, last.fd, 0);
    CHECK(last.data != MAP_FAILED);
    fuzz(target, strtod(argv[2], NULL), &last);
    for (size_t i = 0; i < corpus_count; i++) {
        free(corpus[i]);
    }
    return 0;
}
