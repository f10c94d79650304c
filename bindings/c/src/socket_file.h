/* The socket file: making it, taking it over, and taking it away again.
 *
 * Contract: socket_file_open() listens or says why not.  socket_file_close() removes the file
 * only where it is still the one made here.
 *
 * How this works: the new socket is bound beside the path, made ready there, and renamed onto
 * it once it listens.  So whoever connects finds the old one or the new one, and never nobody.
 * The permissions are set before bind() makes the file, so that there is no moment at which it
 * is open to more than it should be.  The directory is locked meanwhile, and while a file is
 * removed: two producers that start at once come one after the other, and nobody removes what
 * a successor has just put in the place of his file.  What lies beside the path while the lock
 * is free was left by a start that died, and is cleared away.  Where somebody else keeps the
 * lock, a start goes on without it, and leaves alone what lies there; a file is not removed, as
 * it may be a successor's: the next start replaces it.  The Python library does the
 * same, with the same names, so that each can take over from the other.
 *
 * The directory stays open as long as the file is to be removed: that works then also where the
 * program has gone to another directory, as daemon(3) does, and where it has no descriptor left.
 *
 * Where systemd made the socket (LISTEN_FDS, see sd_listen_fds(3)) that one is used, and its
 * file left as it is.
 */
#ifndef APACHEWS_SOCKET_FILE_H
#define APACHEWS_SOCKET_FILE_H

#include <sys/types.h>

#include "apachews.h"

struct socket_file {
    char *path;
    int fd;           /* listens, non-blocking; -1 once it is closed */
    int directory_fd; /* that the file is in, while it is to be removed from there; else -1 */
    bool is_inherited;
    dev_t device;
    ino_t inode;
};

bool socket_file_open(struct socket_file *file, const char *path, const apachews_options *options,
                      apachews_error *error);
/* Remove the file if it is still this one; the socket listens on. */
void socket_file_remove(struct socket_file *file);
/* Stop listening, and remove the file if it is still this one; again does nothing. */
void socket_file_close(struct socket_file *file);

#endif
