/* A chat with rooms, chat.ws?room=tea&name=Ann: examples/chat/producer.py in C, for the same
 * page.  Its argument is the path of its socket file.
 *
 * A client sends plain text and receives JSON objects: first {"room": "tea", "said": […]} with
 * the last messages, then {"name": "Ann", "text": "hello", "at": 1767225600} for each message in
 * the room, {"people": ["Ann", "Bob"]} when people join or leave, and {"problem": "…"} if its own
 * message was rejected.
 *
 * SIGHUP moves all clients to the next program that listens on the path.  They do not notice:
 * name and room are in the URI, which Apache sends to that program too.
 */
#define _POSIX_C_SOURCE 200809L
#include <apachews.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define MAX_ROOM 30
#define MAX_NAME 30 /* characters */
#define MAX_TEXT 1000
#define MAX_ROOMS 1000
#define MAX_PEOPLE 200 /* in a room: each message is sent this often */
#define REMEMBERED 30  /* messages per room, for people who join later */
/* The shortest interval between two lists of people: if a hundred people join at once, each would
 * otherwise get a hundred lists. */
#define PEOPLE_EVERY_MS 200
#define DRAIN_MS 30000
/* The send queue at which a slow client is closed with 1013. */
#define MAX_QUEUE_BYTES (256 * 1024)
#define POLICY_VIOLATION 1008
#define SERVICE_RESTART 1012

struct room {
    struct room *next;
    char name[MAX_ROOM + 1]; /* also the name of the group */
    char *said[REMEMBERED];  /* JSON objects, a ring buffer */
    size_t said_count;
    size_t people;      /* before their APACHEWS_CLOSE; the group can be empty earlier */
    int64_t tell_at_ms; /* when to send the list of people; 0: unchanged */
};

struct person {
    struct room *room;
    char name[4 * MAX_NAME + 1];
};

static apachews_server *server;
static struct room *rooms;
static size_t room_count;
static volatile sig_atomic_t received;

static void on_signal(int number)
{
    received = number;
    apachews_server_wake(server);
}

static void *must(void *memory)
{
    if (memory == NULL) {
        fputs("chat: no memory\n", stderr);
        exit(1);
    }
    return memory;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- Growing text ---- */

struct text {
    char *data;
    size_t length, capacity;
};

static void put(struct text *text, const char *data, size_t length)
{
    if (text->length + length >= text->capacity) {
        text->capacity = (text->length + length) * 2 + 64;
        text->data = must(realloc(text->data, text->capacity));
    }
    memcpy(text->data + text->length, data, length);
    text->length += length;
    text->data[text->length] = '\0';
}

static void puts_to(struct text *text, const char *string)
{
    put(text, string, strlen(string));
}

/* Append a JSON string. */
static void quote(struct text *text, const char *string, size_t length)
{
    puts_to(text, "\"");
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)string[i];
        char escaped[8];
        if (byte < 0x20 || byte == '"' || byte == '\\') {
            put(text, escaped, (size_t)snprintf(escaped, sizeof escaped, "\\u%04x", byte));
        } else {
            put(text, string + i, 1);
        }
    }
    puts_to(text, "\"");
}

/* Count the characters of UTF-8 text. */
static size_t count_characters(const char *text, size_t length)
{
    size_t count = 0;
    for (size_t i = 0; i < length; i++) {
        count += ((unsigned char)text[i] & 0xC0) != 0x80;
    }
    return count;
}

/* ---- Rooms ---- */

static void tell_room(const struct room *room, const struct text *text)
{
    apachews_group_send(server, room->name, APACHEWS_TEXT, text->data, text->length, NULL);
}

static void people_changed(struct room *room)
{
    if (room->tell_at_ms == 0) {
        room->tell_at_ms = now_ms() + PEOPLE_EVERY_MS;
    }
}

static int compare(const void *one, const void *other)
{
    return strcasecmp(*(const char *const *)one, *(const char *const *)other);
}

static void tell_people(struct room *room)
{
    apachews_client *people[MAX_PEOPLE];
    const char *names[MAX_PEOPLE];
    size_t count = apachews_group_members(server, room->name, people, MAX_PEOPLE);
    struct text text = {0};
    for (size_t i = 0; i < count; i++) {
        names[i] = ((struct person *)apachews_client_data(people[i]))->name;
    }
    qsort(names, count, sizeof names[0], compare);
    puts_to(&text, "{\"people\":[");
    for (size_t i = 0; i < count; i++) {
        puts_to(&text, i > 0 ? "," : "");
        quote(&text, names[i], strlen(names[i]));
    }
    puts_to(&text, "]}");
    tell_room(room, &text);
    free(text.data);
    room->tell_at_ms = 0;
}

/* Send the lists of people that are due; return the milliseconds until the next one, or -1. */
static int run_timers(void)
{
    int64_t now = now_ms();
    int64_t next = -1;
    for (struct room *room = rooms; room != NULL; room = room->next) {
        if (room->tell_at_ms != 0 && room->tell_at_ms <= now) {
            tell_people(room);
        }
        if (room->tell_at_ms != 0 && (next < 0 || room->tell_at_ms < next)) {
            next = room->tell_at_ms;
        }
    }
    return next < 0 ? -1 : (int)(next - now);
}

static struct room *find_room(const char *name)
{
    struct room *room = rooms;
    while (room != NULL && strcmp(room->name, name) != 0) {
        room = room->next;
    }
    return room;
}

static struct room *add_room(const char *name)
{
    struct room *room = must(calloc(1, sizeof *room));
    strcpy(room->name, name);
    room->next = rooms;
    rooms = room;
    room_count++;
    return room;
}

static void remove_room(struct room *room)
{
    struct room **link = &rooms;
    while (*link != room) {
        link = &(*link)->next;
    }
    *link = room->next;
    room_count--;
    for (size_t i = 0; i < REMEMBERED; i++) {
        free(room->said[i]);
    }
    free(room);
}

/* ---- People ---- */

/* Read a name, without blanks around it and with single blanks inside. */
static bool read_name(char *name, const char *raw, size_t length)
{
    size_t size = 0;
    if (length != strlen(raw) || !apachews_is_utf8(raw, length)) {
        return false;
    }
    for (const char *p = raw; *p != '\0'; p++) {
        unsigned char byte = (unsigned char)*p;
        bool is_control = byte < 0x20 || byte == 0x7F ||
                          (byte == 0xC2 && (unsigned char)p[1] < 0xA0); /* U+0080 to U+009F */
        if (is_control) {
            return false;
        }
        if (byte == ' ' && (size == 0 || name[size - 1] == ' ')) {
            continue;
        }
        if (size == 4 * MAX_NAME) {
            return false;
        }
        name[size++] = *p;
    }
    size -= size > 0 && name[size - 1] == ' ';
    name[size] = '\0';
    return size > 0 && count_characters(name, size) <= MAX_NAME;
}

/* Add a client to its room; return a problem, for the client, or NULL. */
static const char *enter(apachews_client *client)
{
    const apachews_request *request = apachews_client_request(client);
    char raw[256] = "";
    char key[64] = "lobby";
    struct person person = {0};
    /* If Apache requires a login, the user is the name. */
    long length = apachews_request_query(request, "name", raw, sizeof raw);
    const char *given = request->user != NULL ? request->user : raw;
    if (!read_name(person.name, given, request->user || length < 0 ? strlen(given) : (size_t)length)) {
        return "a name has 1 to 30 characters";
    }
    long key_length = apachews_request_query(request, "room", key, sizeof key);
    size_t size = key_length < 0 ? strlen(key) : (size_t)key_length;
    if (size < 1 || size > MAX_ROOM ||
        strspn(key, "abcdefghijklmnopqrstuvwxyz0123456789-") != size) {
        return "a room's name is a-z, 0-9 and -, at most 30";
    }
    person.room = find_room(key);
    if (person.room == NULL) {
        if (room_count >= MAX_ROOMS) {
            return "there are too many rooms";
        }
        person.room = add_room(key);
    }
    if (person.room->people >= MAX_PEOPLE) {
        return "the room is full";
    }
    apachews_group_join(client, key);
    struct person *kept = must(malloc(sizeof *kept));
    *kept = person;
    kept->room->people++;
    apachews_client_set_data(client, kept);
    return NULL;
}

static void greet(apachews_client *client, const struct room *room)
{
    struct text text = {0};
    size_t first = room->said_count > REMEMBERED ? room->said_count - REMEMBERED : 0;
    puts_to(&text, "{\"room\":");
    quote(&text, room->name, strlen(room->name));
    puts_to(&text, ",\"said\":[");
    for (size_t i = first; i < room->said_count; i++) {
        puts_to(&text, i > first ? "," : "");
        puts_to(&text, room->said[i % REMEMBERED]);
    }
    puts_to(&text, "]}");
    apachews_send(client, APACHEWS_TEXT, text.data, text.length);
    free(text.data);
}

static void joined(apachews_client *client)
{
    const char *problem = enter(client);
    if (problem != NULL) {
        apachews_close(client, POLICY_VIOLATION, problem);
        return;
    }
    struct room *room = ((struct person *)apachews_client_data(client))->room;
    /* A resumed client has received the last messages from another producer. */
    if (!apachews_client_request(client)->resumed) {
        greet(client, room);
    }
    people_changed(room);
}

static void said(apachews_client *client, const apachews_event *event)
{
    struct person *person = apachews_client_data(client);
    bool is_blank = true;
    for (size_t i = 0; i < event->length && is_blank; i++) {
        is_blank = strchr(" \t\r\n\v\f", event->data[i]) != NULL && event->data[i] != '\0';
    }
    if (person == NULL || event->type != APACHEWS_TEXT || is_blank) {
        return;
    }
    if (count_characters(event->data, event->length) > MAX_TEXT) {
        apachews_send_text(client, "{\"problem\":\"At most 1000 characters, please.\"}");
        return;
    }
    struct room *room = person->room;
    struct text text = {0};
    char at[40];
    puts_to(&text, "{\"name\":");
    quote(&text, person->name, strlen(person->name));
    puts_to(&text, ",\"text\":");
    quote(&text, event->data, event->length);
    snprintf(at, sizeof at, ",\"at\":%lld}", (long long)time(NULL));
    puts_to(&text, at);
    tell_room(room, &text);
    char **place = &room->said[room->said_count++ % REMEMBERED];
    free(*place);
    *place = text.data;
}

static void left(apachews_client *client, int code)
{
    struct person *person = apachews_client_data(client);
    if (person == NULL) {
        return;
    }
    struct room *room = person->room;
    /* 1012: moved to the next version of this program, so still in the room. */
    if (code != SERVICE_RESTART) {
        people_changed(room);
    }
    apachews_group_leave(client, room->name);
    apachews_client_set_data(client, NULL);
    free(person);
    if (--room->people == 0) {
        remove_room(room);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s SOCKET.ws\n", argv[0]);
        return 2;
    }
    apachews_error error;
    apachews_options options = {.max_queue_bytes = MAX_QUEUE_BYTES};
    server = apachews_server_open(argv[1], &options, &error);
    if (server == NULL) {
        fprintf(stderr, "%s: %s\n", argv[0], error.text);
        return 1;
    }
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    signal(SIGHUP, on_signal);

    apachews_event event;
    while (apachews_server_next(server, run_timers(), &event)) {
        switch (event.kind) {
        case APACHEWS_OPEN:
            joined(event.client);
            break;
        case APACHEWS_MESSAGE:
            said(event.client, &event);
            break;
        case APACHEWS_CLOSE:
            left(event.client, event.code);
            break;
        case APACHEWS_WAKE:
            if (received == SIGHUP) {
                apachews_server_drain(server, DRAIN_MS);
            } else if (received) {
                apachews_server_stop(server);
            }
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
