/* A fuzzer for what takes bytes from strangers, guided by coverage, and its targets.
 *
 *     fuzz TARGET SECONDS SEED LAST FILE…
 *     fuzz TARGET replay FILE
 *
 * The files are where it begins from.  The input that is being tried stands in the file LAST,
 * so that after a crash it is there to be replayed.  The same seed tries the same inputs, as
 * long as the machine lets it.
 *
 * How this works: gcc's -fsanitize-coverage=trace-pc calls __sanitizer_cov_trace_pc() at every
 * edge of the library; an input that reaches one, or one more often, than any before is kept,
 * and is mutated in its turn.  So it needs no clang.  Sanitizers find the memory that is misused;
 * the targets look for the rest.
 */
#include "system.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "json.h"
#include "language.h"
#include "queue.h"
#include "request.h"
#include "utf8.h"
#include "wire.h"

/* Longer inputs say the same, more slowly. */
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
    CHECK(!digest->is_over); /* nothing follows an end */
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

/* A stream gives the same, however it is cut.  The first byte says where, and what the longest
 * message is. */
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
        CHECK(size < 0 || (size_t)size <= strlen(facts->uri));
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

/* Two sockets between which little fits: what comes out are whole frames, in order. */
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

static const struct target {
    const char *name;
    void (*run)(const unsigned char *data, size_t length);
} targets[] = {
    {"wire", fuzz_wire},
    {"json", fuzz_json},
    {"request", fuzz_request},
    {"queue", fuzz_queue},
};

/* ---- The fuzzer ---- */

static unsigned char hits[MAP_SIZE]; /* of the input that runs */
static unsigned char seen[MAP_SIZE]; /* of all before: how often, a bit for each power of two */

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

/* The last input, in a file that outlives a crash. */
struct last {
    int fd;
    unsigned char *data;
};

static void run(const struct target *target, const struct input *input, struct last *last)
{
    CHECK(ftruncate(last->fd, (off_t)input->length) == 0);
    memcpy(last->data, input->data, input->length);
    /* Not a byte more than it has: the sanitizer sees who looks further. */
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
    clock_gettime(CLOCK_MONOTONIC, &begun);
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
            clock_gettime(CLOCK_MONOTONIC, &now);
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
