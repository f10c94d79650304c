#include "system.h"

#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

/* Larger buffers are freed between two messages. */
#define KEPT_BYTES 4096

void wire_put_number(unsigned char *bytes, uint32_t number)
{
    bytes[0] = (unsigned char)(number >> 24);
    bytes[1] = (unsigned char)(number >> 16);
    bytes[2] = (unsigned char)(number >> 8);
    bytes[3] = (unsigned char)number;
}

uint32_t wire_get_number(const unsigned char *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

size_t wire_encode_header(unsigned char *header, int first, uint64_t length)
{
    header[0] = (unsigned char)first;
    if (length < 126) {
        header[1] = (unsigned char)length;
        return 2;
    }
    size_t bytes = length < 65536 ? 2 : 8;
    header[1] = bytes == 2 ? 126 : 127;
    for (size_t i = 0; i < bytes; i++) {
        header[2 + i] = (unsigned char)(length >> (8 * (bytes - 1 - i)));
    }
    return 2 + bytes;
}

int wire_decode_header(const unsigned char *data, size_t length, struct wire_header *header,
                       const char **problem)
{
    header->size = 2;
    if (length < 2) {
        return 0;
    }
    header->first = data[0];
    header->length = data[1];
    if (data[1] < 126) {
        return 1;
    }
    if (data[1] & WIRE_MASKED) {
        *problem = "masked frame: frames on the wire are never masked";
        return -1;
    }
    size_t bytes = data[1] == 126 ? 2 : 8;
    header->size = 2 + bytes;
    if (length < header->size) {
        return 0;
    }
    header->length = 0;
    for (size_t i = 0; i < bytes; i++) {
        header->length = header->length << 8 | data[2 + i];
    }
    if (header->length < (bytes == 2 ? 126u : 65536u)) {
        *problem = "a frame length is not in its shortest form";
        return -1;
    }
    if (header->length >> 63) {
        *problem = "a frame length exceeds 2**63 - 1";
        return -1;
    }
    return 1;
}

bool wire_is_sendable(int code)
{
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
           (code >= 3000 && code <= 4999);
}

int wire_decode_close(const unsigned char *payload, size_t length, int *code, char *reason,
                      const char **problem)
{
    *code = WIRE_NO_CODE;
    reason[0] = '\0';
    if (length == 0) {
        return 0;
    }
    if (length == 1) {
        *problem = "CLOSE payload is 1 byte; it must be empty or at least 2";
        return WIRE_PROTOCOL_ERROR;
    }
    *code = payload[0] << 8 | payload[1];
    if (!wire_is_sendable(*code)) {
        *problem = "CLOSE has a code that must not be sent";
        return WIRE_PROTOCOL_ERROR;
    }
    if (!utf8_is_valid(payload + 2, length - 2)) {
        *problem = "the reason of a CLOSE is not UTF-8";
        return WIRE_INVALID_DATA;
    }
    memcpy(reason, payload + 2, length - 2);
    reason[length - 2] = '\0';
    return 0;
}

void wire_reader_init(struct wire_reader *reader, uint64_t max_message_bytes)
{
    *reader = (struct wire_reader){.max_message_bytes = max_message_bytes};
}

void wire_reader_free(struct wire_reader *reader)
{
    free(reader->rest);
    free(reader->payload);
    *reader = (struct wire_reader){.has_finished = true};
}

void wire_reader_feed(struct wire_reader *reader, void *data, size_t size)
{
    reader->data = data;
    reader->size = size;
    reader->at = 0;
}

static void restore_cut(struct wire_reader *reader)
{
    if (reader->cut != NULL) {
        *reader->cut = reader->cut_byte;
        reader->cut = NULL;
    }
}

size_t wire_reader_unread(const struct wire_reader *reader)
{
    return reader->size - reader->at;
}

void wire_reader_move(struct wire_reader *reader, unsigned char *memory)
{
    size_t unread = wire_reader_unread(reader);
    restore_cut(reader); /* it may be the first unread byte */
    memcpy(memory, reader->data + reader->at, unread);
    wire_reader_feed(reader, memory, unread);
}

bool wire_reader_is_idle(const struct wire_reader *reader)
{
    return reader->rest_size == 0 && reader->remaining == 0 && reader->message_opcode == 0;
}

/* Make room for size bytes and a NUL. */
static bool reserve(unsigned char **buffer, size_t *capacity, size_t size)
{
    if (size < *capacity) {
        return true;
    }
    size_t wanted = size + size / 2 + 64;
    unsigned char *grown = realloc(*buffer, wanted);
    if (grown == NULL) {
        return false;
    }
    *buffer = grown;
    *capacity = wanted;
    return true;
}

static void finish(struct wire_reader *reader)
{
    bool has_opened = reader->has_opened;
    free(reader->payload);
    reader->payload = NULL;
    reader->payload_size = reader->payload_capacity = 0;
    /* rest is not freed: the item may point into it. */
    reader->rest_size = 0;
    reader->remaining = 0;
    reader->message_opcode = 0;
    reader->has_opened = has_opened;
    reader->has_finished = true;
}

static void violate(struct wire_reader *reader, struct wire_item *item, int code,
                    const char *problem)
{
    item->kind = WIRE_VIOLATION;
    item->code = code;
    snprintf(item->text, sizeof item->text, "%s", problem);
    finish(reader);
}

static void fail_memory(struct wire_reader *reader, struct wire_item *item)
{
    violate(reader, item, WIRE_INTERNAL_ERROR, "the producer is out of memory");
}

/* Collect size bytes in rest; 1: complete, 0: more bytes are needed, -1: out of memory. */
static int collect(struct wire_reader *reader, size_t size)
{
    size_t wanted = size - reader->rest_size;
    size_t available = reader->size - reader->at;
    size_t taken = wanted < available ? wanted : available;
    if (!reserve(&reader->rest, &reader->rest_capacity, reader->rest_size + taken)) {
        return -1;
    }
    memcpy(reader->rest + reader->rest_size, reader->data + reader->at, taken);
    reader->rest_size += taken;
    reader->at += taken;
    return taken == wanted;
}

/* Put a NUL after the item's data; restore_cut() undoes it in the next call. */
static void terminate(struct wire_reader *reader, unsigned char *end)
{
    reader->cut = end;
    reader->cut_byte = *end;
    *end = '\0';
}

static void emit_message(struct wire_reader *reader, struct wire_item *item, unsigned char *data,
                         size_t length)
{
    item->kind = reader->message_opcode == WIRE_OP_TEXT ? WIRE_TEXT : WIRE_BINARY;
    item->data = data;
    item->length = length;
    reader->message_opcode = 0;
    reader->message_bytes = 0;
    if (item->kind == WIRE_TEXT && !utf8_is_valid(data, length)) {
        item->data = NULL;
        item->length = 0;
        violate(reader, item, WIRE_INVALID_DATA, "text message is not UTF-8");
    }
}

/* Emit a message that was collected; its memory becomes the caller's. */
static void emit_collected(struct wire_reader *reader, struct wire_item *item)
{
    unsigned char *payload = reader->payload;
    size_t size = reader->payload_size;
    reader->payload = NULL;
    reader->payload_size = reader->payload_capacity = 0;
    item->owned = payload;
    payload[size] = '\0';
    emit_message(reader, item, payload, size);
}

/* Consume the available bytes of a data frame's payload. */
static void read_payload(struct wire_reader *reader, struct wire_item *item)
{
    size_t available = reader->size - reader->at;
    size_t taken = reader->remaining < available ? (size_t)reader->remaining : available;
    unsigned char *data = reader->data + reader->at;
    bool is_whole = taken == reader->remaining && reader->is_last_frame;
    if (is_whole && reader->payload_size == 0) {
        reader->at += taken;
        reader->remaining = 0;
        terminate(reader, data + taken);
        emit_message(reader, item, data, taken);
        return;
    }
    if (!reserve(&reader->payload, &reader->payload_capacity, reader->payload_size + taken)) {
        fail_memory(reader, item);
        return;
    }
    memcpy(reader->payload + reader->payload_size, data, taken);
    reader->payload_size += taken;
    reader->at += taken;
    reader->remaining -= taken;
    if (is_whole) {
        emit_collected(reader, item);
    }
}

static void start_data_frame(struct wire_reader *reader, struct wire_item *item,
                             const struct wire_header *header)
{
    static unsigned char nothing[1];
    int opcode = header->first & WIRE_OPCODE;
    if (!reader->has_opened) {
        violate(reader, item, WIRE_PROTOCOL_ERROR, "the first frame is not OPEN");
        return;
    }
    if (opcode == WIRE_OP_CONTINUATION) {
        if (reader->message_opcode == 0) {
            violate(reader, item, WIRE_PROTOCOL_ERROR,
                    "CONTINUATION frame without a message to continue");
            return;
        }
    } else if (reader->message_opcode != 0) {
        violate(reader, item, WIRE_PROTOCOL_ERROR, "new message inside a fragmented message");
        return;
    } else {
        reader->message_opcode = (unsigned char)opcode;
    }
    /* Does not overflow: both summands are below 2**63. */
    reader->message_bytes += header->length;
    if (reader->message_bytes > reader->max_message_bytes) {
        char problem[80];
        snprintf(problem, sizeof problem, "message has more than %llu bytes",
                 (unsigned long long)reader->max_message_bytes);
        violate(reader, item, WIRE_TOO_BIG, problem);
        return;
    }
    reader->remaining = header->length;
    reader->is_last_frame = (header->first & WIRE_FIN) != 0;
    if (reader->remaining == 0 && reader->is_last_frame) {
        if (reader->payload_size > 0) {
            emit_collected(reader, item);
        } else {
            emit_message(reader, item, nothing, 0);
        }
    }
}

static void read_first_frame(struct wire_reader *reader, struct wire_item *item, int opcode,
                      const unsigned char *payload, size_t length)
{
    const char *problem = NULL;
    enum request_result result;
    reader->has_opened = true;
    if (opcode == WIRE_OP_OPEN) {
        item->kind = WIRE_OPEN;
        result = request_decode(payload, length, &item->request, &problem);
    } else {
        item->kind = WIRE_PUBLISH;
        result = publish_decode(payload, length, &item->group, &problem);
    }
    if (result == REQUEST_NO_MEMORY) {
        fail_memory(reader, item);
    } else if (result != REQUEST_OK) {
        violate(reader, item, WIRE_PROTOCOL_ERROR, problem);
    }
}

/* Process a LANE frame; kinds that this version does not know are ignored. */
static void read_lane(struct wire_item *item, const unsigned char *payload, size_t length)
{
    if (length == 5 && payload[0] == WIRE_LANE_OFFER) {
        item->kind = WIRE_OFFER;
        item->key = wire_get_number(payload + 1);
    } else if (length > 0 && length <= WIRE_MAX_CONTROL && payload[0] == WIRE_LANE_BRIDGE &&
               memchr(payload + 1, '\0', length - 1) == NULL &&
               utf8_is_valid(payload + 1, length - 1)) {
        item->kind = WIRE_BRIDGE;
        memcpy(item->text, payload + 1, length - 1);
        item->text[length - 1] = '\0';
    }
}

/* Process a complete frame other than a data frame. */
static void read_frame(struct wire_reader *reader, struct wire_item *item, int opcode,
                       unsigned char *payload, size_t length)
{
    const char *problem;
    int code;
    if (opcode == WIRE_OP_OPEN && reader->has_opened) {
        violate(reader, item, WIRE_PROTOCOL_ERROR, "second OPEN frame");
    } else if (!reader->has_opened && (opcode == WIRE_OP_OPEN || opcode == WIRE_OP_PUBLISH)) {
        read_first_frame(reader, item, opcode, payload, length);
    } else if (!reader->has_opened) {
        violate(reader, item, WIRE_PROTOCOL_ERROR, "the first frame is not OPEN");
    } else if (opcode == WIRE_OP_CLOSE) {
        item->kind = WIRE_CLOSE;
        code = wire_decode_close(payload, length, &item->code, item->text, &problem);
        if (code != 0) {
            violate(reader, item, code, problem);
        }
        finish(reader);
    } else if (opcode == WIRE_OP_MOVE) {
        if (reader->message_opcode != 0) {
            violate(reader, item, WIRE_PROTOCOL_ERROR, "MOVE frame inside a message");
            return;
        }
        item->kind = WIRE_MOVE;
        finish(reader);
    } else if (opcode == WIRE_OP_PONG) {
        item->kind = WIRE_PONG;
        item->data = payload;
        item->length = length;
    } else if (opcode == WIRE_OP_LANE) {
        read_lane(item, payload, length);
    }
    /* PING and ANSWER do not occur in this direction, and the other opcodes are reserved.
     * They are ignored, so that the wire can be extended. */
}

/* Consume the next frame's header, or the whole frame if it is not a data frame; false if more
 * bytes are needed. */
static bool read_header(struct wire_reader *reader, struct wire_item *item)
{
    struct wire_header header;
    const char *problem;
    bool is_in_rest = reader->rest_size > 0;
    unsigned char *head = is_in_rest ? reader->rest : reader->data + reader->at;
    size_t available = is_in_rest ? reader->rest_size : reader->size - reader->at;
    if (available == 0) {
        return false;
    }
    int result = wire_decode_header(head, available, &header, &problem);
    if (result < 0) {
        violate(reader, item, WIRE_PROTOCOL_ERROR, problem);
        return true;
    }
    size_t needed = header.size;
    int opcode = header.first & WIRE_OPCODE;
    if (result > 0) {
        if (header.first & WIRE_RSV) {
            violate(reader, item, WIRE_PROTOCOL_ERROR,
                    "reserved bit set; the wire has no extensions");
            return true;
        }
        if (opcode <= WIRE_OP_BINARY) {
            if (is_in_rest) {
                reader->rest_size = 0;
            } else {
                reader->at += header.size;
            }
            start_data_frame(reader, item, &header);
            return true;
        }
        uint64_t limit = opcode < WIRE_OP_CLOSE ? WIRE_MAX_OPEN : WIRE_MAX_CONTROL;
        if (header.length > limit) {
            violate(reader, item, WIRE_PROTOCOL_ERROR,
                    opcode < WIRE_OP_CLOSE ? "frame other than a data frame has more than 8 MiB"
                                           : "control frame has more than 125 bytes");
            return true;
        }
        if (!(header.first & WIRE_FIN)) {
            violate(reader, item, WIRE_PROTOCOL_ERROR,
                    "frame other than a data frame is fragmented");
            return true;
        }
        needed += (size_t)header.length;
    }
    if (available < needed) {
        int collected = collect(reader, needed);
        if (collected < 0) {
            fail_memory(reader, item);
        }
        return collected != 0;
    }
    if (is_in_rest) {
        reader->rest_size = 0;
    } else {
        reader->at += needed;
    }
    read_frame(reader, item, opcode, head + header.size, (size_t)header.length);
    return true;
}

void wire_reader_next(struct wire_reader *reader, struct wire_item *item)
{
    *item = (struct wire_item){.kind = WIRE_NOTHING};
    restore_cut(reader);
    if (reader->rest_size == 0 && reader->rest_capacity > KEPT_BYTES) {
        free(reader->rest);
        reader->rest = NULL;
        reader->rest_capacity = 0;
    }
    while (item->kind == WIRE_NOTHING && !reader->has_finished) {
        if (reader->remaining > 0) {
            if (reader->at == reader->size) {
                break;
            }
            read_payload(reader, item);
        } else if (!read_header(reader, item)) {
            break;
        }
    }
}
