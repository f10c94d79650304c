#include "system.h"

#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

/* What is kept of a buffer between two messages; larger ones are given back. */
#define KEPT_BYTES 4096

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
        *problem = "a frame is masked; the wire is never masked";
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
        *problem = "a length is not in its shortest form";
        return -1;
    }
    if (header->length >> 63) {
        *problem = "a length is over 2**63 - 1";
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
        *problem = "the payload of a CLOSE has one byte; it needs none or two and more";
        return WIRE_PROTOCOL_ERROR;
    }
    *code = payload[0] << 8 | payload[1];
    if (!wire_is_sendable(*code)) {
        *problem = "a CLOSE has a code that may not be sent";
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
    restore_cut(reader); /* it may be the first of these bytes */
    memcpy(memory, reader->data + reader->at, unread);
    wire_reader_feed(reader, memory, unread);
}

bool wire_reader_is_idle(const struct wire_reader *reader)
{
    return reader->rest_size == 0 && reader->remaining == 0 && reader->message_opcode == 0;
}

/* Make room for size bytes, and the NUL behind them. */
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
    /* The item may point into the rest; that is given back with the reader. */
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

static void run_out(struct wire_reader *reader, struct wire_item *item)
{
    violate(reader, item, WIRE_INTERNAL_ERROR, "the producer has no memory left");
}

/* Have that many bytes in rest: 1; 0 where they have not come yet; -1 for no memory. */
static int gather(struct wire_reader *reader, size_t size)
{
    size_t wanted = size - reader->rest_size;
    size_t there = reader->size - reader->at;
    size_t taken = wanted < there ? wanted : there;
    if (!reserve(&reader->rest, &reader->rest_capacity, reader->rest_size + taken)) {
        return -1;
    }
    memcpy(reader->rest + reader->rest_size, reader->data + reader->at, taken);
    reader->rest_size += taken;
    reader->at += taken;
    return taken == wanted;
}

/* Put a NUL behind what is given out; it is taken back with the next call. */
static void terminate(struct wire_reader *reader, unsigned char *end)
{
    reader->cut = end;
    reader->cut_byte = *end;
    *end = '\0';
}

static void give_message(struct wire_reader *reader, struct wire_item *item, unsigned char *data,
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
        violate(reader, item, WIRE_INVALID_DATA, "a text message is not UTF-8");
    }
}

/* Give a message that was gathered, and the memory with it. */
static void give_gathered(struct wire_reader *reader, struct wire_item *item)
{
    unsigned char *payload = reader->payload;
    size_t size = reader->payload_size;
    reader->payload = NULL;
    reader->payload_size = reader->payload_capacity = 0;
    item->owned = payload;
    payload[size] = '\0';
    give_message(reader, item, payload, size);
}

/* Take what is there of a data frame's payload. */
static void take_payload(struct wire_reader *reader, struct wire_item *item)
{
    size_t there = reader->size - reader->at;
    size_t taken = reader->remaining < there ? (size_t)reader->remaining : there;
    unsigned char *data = reader->data + reader->at;
    bool is_whole = taken == reader->remaining && reader->is_last_frame;
    if (is_whole && reader->payload_size == 0) {
        reader->at += taken;
        reader->remaining = 0;
        terminate(reader, data + taken);
        give_message(reader, item, data, taken);
        return;
    }
    if (!reserve(&reader->payload, &reader->payload_capacity, reader->payload_size + taken)) {
        run_out(reader, item);
        return;
    }
    memcpy(reader->payload + reader->payload_size, data, taken);
    reader->payload_size += taken;
    reader->at += taken;
    reader->remaining -= taken;
    if (is_whole) {
        give_gathered(reader, item);
    }
}

static void begin_data_frame(struct wire_reader *reader, struct wire_item *item,
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
                    "a CONTINUATION without a message to continue");
            return;
        }
    } else if (reader->message_opcode != 0) {
        violate(reader, item, WIRE_PROTOCOL_ERROR, "a new message inside a fragmented one");
        return;
    } else {
        reader->message_opcode = (unsigned char)opcode;
    }
    /* (Neither has the highest bit, so the sum does not wrap around.) */
    reader->message_bytes += header->length;
    if (reader->message_bytes > reader->max_message_bytes) {
        char problem[80];
        snprintf(problem, sizeof problem, "a message of more than %llu bytes",
                 (unsigned long long)reader->max_message_bytes);
        violate(reader, item, WIRE_TOO_BIG, problem);
        return;
    }
    reader->remaining = header->length;
    reader->is_last_frame = (header->first & WIRE_FIN) != 0;
    if (reader->remaining == 0 && reader->is_last_frame) {
        if (reader->payload_size > 0) {
            give_gathered(reader, item);
        } else {
            give_message(reader, item, nothing, 0);
        }
    }
}

static void open_with(struct wire_reader *reader, struct wire_item *item, int opcode,
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
        run_out(reader, item);
    } else if (result != REQUEST_OK) {
        violate(reader, item, WIRE_PROTOCOL_ERROR, problem);
    }
}

/* Take OPEN, a control frame or a reserved frame, which is whole. */
static void take_frame(struct wire_reader *reader, struct wire_item *item, int opcode,
                       unsigned char *payload, size_t length)
{
    const char *problem;
    int code;
    if (opcode == WIRE_OP_OPEN && reader->has_opened) {
        violate(reader, item, WIRE_PROTOCOL_ERROR, "a second OPEN");
    } else if (!reader->has_opened && (opcode == WIRE_OP_OPEN || opcode == WIRE_OP_PUBLISH)) {
        open_with(reader, item, opcode, payload, length);
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
            violate(reader, item, WIRE_PROTOCOL_ERROR, "a MOVE inside a message");
            return;
        }
        item->kind = WIRE_MOVE;
        finish(reader);
    } else if (opcode == WIRE_OP_PONG) {
        item->kind = WIRE_PONG;
        item->data = payload;
        item->length = length;
    }
    /* PING and ANSWER do not occur in this direction, and the other opcodes are reserved:
     * left out, so that the wire can grow. */
}

/* Take the next frame's header, and where it is no data frame all of it; false where it
 * has not come yet. */
static bool take_header(struct wire_reader *reader, struct wire_item *item)
{
    struct wire_header header;
    const char *problem;
    bool is_in_rest = reader->rest_size > 0;
    unsigned char *head = is_in_rest ? reader->rest : reader->data + reader->at;
    size_t there = is_in_rest ? reader->rest_size : reader->size - reader->at;
    if (there == 0) {
        return false;
    }
    int result = wire_decode_header(head, there, &header, &problem);
    if (result < 0) {
        violate(reader, item, WIRE_PROTOCOL_ERROR, problem);
        return true;
    }
    size_t needed = header.size;
    int opcode = header.first & WIRE_OPCODE;
    if (result > 0) {
        if (header.first & WIRE_RSV) {
            violate(reader, item, WIRE_PROTOCOL_ERROR,
                    "an RSV bit is set; the wire knows no extension");
            return true;
        }
        if (opcode <= WIRE_OP_BINARY) {
            if (is_in_rest) {
                reader->rest_size = 0;
            } else {
                reader->at += header.size;
            }
            begin_data_frame(reader, item, &header);
            return true;
        }
        uint64_t limit = opcode < WIRE_OP_CLOSE ? WIRE_MAX_OPEN : WIRE_MAX_CONTROL;
        if (header.length > limit) {
            violate(reader, item, WIRE_PROTOCOL_ERROR,
                    opcode < WIRE_OP_CLOSE ? "a frame other than a message has more than 8 MiB"
                                           : "a control frame has more than 125 bytes");
            return true;
        }
        if (!(header.first & WIRE_FIN)) {
            violate(reader, item, WIRE_PROTOCOL_ERROR,
                    "a frame other than a message is fragmented");
            return true;
        }
        needed += (size_t)header.length;
    }
    if (there < needed) {
        int gathered = gather(reader, needed);
        if (gathered < 0) {
            run_out(reader, item);
        }
        return gathered != 0;
    }
    if (is_in_rest) {
        reader->rest_size = 0;
    } else {
        reader->at += needed;
    }
    take_frame(reader, item, opcode, head + header.size, (size_t)header.length);
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
            take_payload(reader, item);
        } else if (!take_header(reader, item)) {
            break;
        }
    }
}
