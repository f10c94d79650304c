/* The wire, version 1: the protocol on the Unix socket.  docs/reference/wire.md is its specification.
 *
 * Contract: bytes in, items out; no I/O, no clock.  One reader per connection.
 *
 * How the reader works: wire_reader_feed() gets bytes in arbitrary pieces, and
 * wire_reader_next() returns their items one by one, then WIRE_NOTHING; only then may more be
 * fed.  A message whose bytes all are in one piece is not copied.  Other payloads are collected
 * in memory that grows with the received bytes, not with the length that a header claims.  Only
 * headers, control frames and OPEN wait in rest until they are complete; each has a limit.
 *
 * The reader never fails: invalid bytes are a WIRE_VIOLATION.  Bytes after a violation, a CLOSE
 * or a MOVE are ignored.
 */
#ifndef APACHEWS_WIRE_H
#define APACHEWS_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "request.h"

enum {
    WIRE_OP_CONTINUATION = 0x0,
    WIRE_OP_TEXT = 0x1,
    WIRE_OP_BINARY = 0x2,
    WIRE_OP_OPEN = 0x3,
    WIRE_OP_ANSWER = 0x4,
    WIRE_OP_MOVE = 0x5,
    WIRE_OP_PUBLISH = 0x6,
    WIRE_OP_LANE = 0x7,
    WIRE_OP_CLOSE = 0x8,
    WIRE_OP_PING = 0x9,
    WIRE_OP_PONG = 0xA,
    WIRE_FIN = 0x80,
    WIRE_MASKED = 0x80,
    WIRE_RSV = 0x70,
    WIRE_OPCODE = 0x0F
};

/* The kinds of LANE frames: the first byte of their payload.  Numbers follow, big-endian. */
enum {
    /* On a client's connection, to the bridge. */
    WIRE_LANE_ASK = 1,
    WIRE_LANE_JOIN = 2,
    WIRE_LANE_OWN = 3,
    /* On a client's connection, to the producer. */
    WIRE_LANE_OFFER = 4,
    WIRE_LANE_BRIDGE = 5,
    /* On a channel, to the producer. */
    WIRE_LANE_READY = 6,
    WIRE_LANE_SLOW = 7,
    /* On a channel, to the bridge. */
    WIRE_LANE_OFF = 8,
    WIRE_LANE_ADD = 9,
    WIRE_LANE_REMOVE = 10,
    WIRE_LANE_MULTICAST = 11,
    WIRE_LANE_UNICAST = 12
};

/* Close codes (RFC 6455 7.4.1, IANA) that this library sends or reports. */
enum {
    WIRE_NORMAL = 1000,
    WIRE_GOING_AWAY = 1001,
    WIRE_PROTOCOL_ERROR = 1002,
    WIRE_NO_CODE = 1005,
    WIRE_ABNORMAL = 1006,
    WIRE_INVALID_DATA = 1007,
    WIRE_TOO_BIG = 1009,
    WIRE_INTERNAL_ERROR = 1011,
    WIRE_SERVICE_RESTART = 1012,
    WIRE_TRY_AGAIN_LATER = 1013
};

#define WIRE_MAX_HEADER 10
/* RFC 6455 5.5: the longest payload of a control frame. */
#define WIRE_MAX_CONTROL 125
/* RFC 6455 5.5.1: two of those bytes are the code. */
#define WIRE_MAX_REASON 123
/* docs/reference/wire.md: OPEN, and frames of reserved opcodes below 0x8. */
#define WIRE_MAX_OPEN (8u * 1024 * 1024)
#define WIRE_MAX_ANSWER (64u * 1024)
/* A channel carries frames of at most this size, with their header. */
#define WIRE_MAX_LANE_FRAME (65536 + WIRE_MAX_HEADER)
/* Clients that one frame of a channel names. */
#define WIRE_MAX_LANE_NUMBERS 4096

/* Write and read a number of a LANE frame: four bytes. */
void wire_put_number(unsigned char *bytes, uint32_t number);
uint32_t wire_get_number(const unsigned char *bytes);

/* Write the header of an unmasked frame; return its 2, 4 or 10 bytes. */
size_t wire_encode_header(unsigned char *header, int first, uint64_t length);

struct wire_header {
    int first;
    uint64_t length;
    size_t size; /* of the header; if incomplete: the bytes needed to continue */
};

/* 1: *header is set; 0: the header is incomplete; -1: it is invalid, see *problem. */
int wire_decode_header(const unsigned char *data, size_t length, struct wire_header *header,
                       const char **problem);

/* Whether a CLOSE frame may carry the code (RFC 6455 7.4). */
bool wire_is_sendable(int code);

/* Decode the payload of a CLOSE; return 0, or the close code for an invalid one. */
int wire_decode_close(const unsigned char *payload, size_t length, int *code, char *reason,
                      const char **problem);

enum wire_kind {
    WIRE_NOTHING,   /* more bytes are needed, or the reader has finished */
    WIRE_OPEN,      /* request: owned by the caller */
    WIRE_PUBLISH,   /* group: for free() by the caller; NULL: all clients */
    WIRE_TEXT,      /* data, length; a NUL after them */
    WIRE_BINARY,    /* the same */
    WIRE_PONG,      /* data, length; until the next call */
    WIRE_CLOSE,     /* code, text */
    WIRE_MOVE,
    WIRE_OFFER,     /* key; a descriptor came with the bytes of the frame */
    WIRE_BRIDGE,    /* text: the id of the bridge process that has the client now */
    WIRE_VIOLATION  /* code, text */
};

struct wire_item {
    enum wire_kind kind;
    int code;
    uint32_t key;
    unsigned char *data; /* valid until wire_reader_next(), or until the fed bytes are freed */
    size_t length;
    unsigned char *owned; /* for free() by the caller after its use of data; or NULL */
    struct request *request;
    char *group;
    char text[WIRE_MAX_CONTROL + 3];
};

struct wire_reader {
    uint64_t max_message_bytes;
    unsigned char *data; /* the fed bytes, consumed up to at */
    size_t size;
    size_t at;
    unsigned char *rest; /* the beginning of a header, a control frame or OPEN */
    size_t rest_size;
    size_t rest_capacity;
    unsigned char *payload; /* of an incomplete message */
    size_t payload_size;
    size_t payload_capacity;
    uint64_t message_bytes; /* the sum of its frames' lengths so far */
    uint64_t remaining;     /* missing bytes of the current data frame */
    unsigned char *cut;     /* the byte that a NUL replaces until the next call */
    unsigned char cut_byte;
    unsigned char message_opcode; /* inside a message, else 0 */
    bool is_last_frame;           /* whether the current data frame ends its message */
    bool has_opened;
    bool has_finished;
};

void wire_reader_init(struct wire_reader *reader, uint64_t max_message_bytes);
void wire_reader_free(struct wire_reader *reader);

/* Feed bytes.  The buffer must have room for one more byte, and the reader writes to it. */
void wire_reader_feed(struct wire_reader *reader, void *data, size_t size);

/* The number of fed bytes that are not consumed yet. */
size_t wire_reader_unread(const struct wire_reader *reader);
/* Move the unread bytes to memory with room for one more byte.  The last item's data is
 * invalid then. */
void wire_reader_move(struct wire_reader *reader, unsigned char *memory);

/* Return the next item. */
void wire_reader_next(struct wire_reader *reader, struct wire_item *item);

/* Whether the reader is between messages: an end of file here is not an error. */
bool wire_reader_is_idle(const struct wire_reader *reader);

#endif
