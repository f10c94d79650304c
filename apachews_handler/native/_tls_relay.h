/* What the files of the extension _tls_relay share; each says in its header what it does. */
#ifndef APACHEWS_TLS_RELAY_H
#define APACHEWS_TLS_RELAY_H

#include <stddef.h>
#include <stdint.h>

/* _relay_loop.c: OpenSSL's functions, in the order in which native/tls_relay.py names them. */
struct openssl {
    int (*ssl_peek)(void *ssl, void *data, int size);
    int (*ssl_read)(void *ssl, void *data, int size);
    int (*ssl_write)(void *ssl, const void *data, int size);
    int (*ssl_get_error)(const void *ssl, int result);
    int (*ssl_has_pending)(const void *ssl);
    int (*ssl_shutdown)(void *ssl);
    void (*ssl_set_shutdown)(void *ssl, int mode);
    void (*ssl_set_bio)(void *ssl, void *to_read, void *to_write);
    void (*ssl_free)(void *ssl);
    void (*err_clear_error)(void);
    void *(*bio_meth_new)(int type, const char *name);
    int (*bio_meth_set_read)(void *method, int (*read)(void *bio, char *data, int size));
    int (*bio_meth_set_write)(void *method, int (*write)(void *bio, const char *data, int size));
    int (*bio_meth_set_ctrl)(void *method,
                             long (*ctrl)(void *bio, int command, long number, void *data));
    void *(*bio_new)(const void *method);
    void (*bio_set_data)(void *bio, void *data);
    void *(*bio_get_data)(void *bio);
    void (*bio_set_init)(void *bio, int is_ready);
    void (*bio_set_flags)(void *bio, int flags);
    void (*bio_clear_flags)(void *bio, int flags);
    int (*bio_free)(void *bio);
};

struct client;

/* Make what all clients need; 0, or -1 with errno.  Again does nothing. */
int relay_open(const struct openssl *functions);
/* Return the epoll descriptor, which is readable while ``relay_turn`` has something to do. */
int relay_descriptor(void);
/* Return how many clients there are, those that were not started included. */
size_t relay_count(void);
/* Write the clients' descriptors, two for each; return how many there are. */
size_t relay_client_descriptors(int *to, size_t room);
/* Reserve what a client needs, and own nothing yet; NULL with errno. */
struct client *relay_add(void *ssl, int tcp, int pair);
/* Own the SSL and both descriptors, and serve the client from now on. */
void relay_start(struct client *client);
/* Undo ``relay_add``. */
void relay_withdraw(struct client *client);
/* Wait once, ``max_wait_ms`` at most (-1: for ever), and serve those that are ready. */
void relay_turn(int max_wait_ms);
/* Return how long the next turn may wait, ms, -1: for ever. */
int relay_wait_ms(int max_wait_ms);
/* Serve until no client is left, or until STOP_MS after a signal.  ``signals`` is a signalfd;
 * ``is_stopping`` says that the signal has come. */
void relay_run(int signals, int is_stopping);

/* Discard what only Python used, and compress the rest.  ``python`` is an address in the data of
 * Python's library.  Without memory or a place in a table nothing happens. */
void cold_memory_store(uintptr_t python);
/* Return the compressed size, 0 if that would exceed ``room``; ``size`` is 64 KiB at most. */
size_t cold_memory_compress(const unsigned char *from, size_t size, unsigned char *to,
                            size_t room);
/* Undo it; 0, or -1 for a block that is not whole. */
int cold_memory_expand(const unsigned char *from, size_t stored, unsigned char *to, size_t size);

#endif
