/* The socket file: creating, replacing and removing it.
 *
 * Contract: socket_file_open() listens or sets *error.  socket_file_close() removes the file only
 * if it is still the one that was created here.
 *
 * How this works: the new socket is bound to a temporary name beside the path, starts to listen,
 * and is renamed onto the path.  A client that connects finds the old socket or the new one, and
 * always a listening one.  The permissions are set before bind() creates the file, so that they
 * are never too wide.  The directory is locked during this, and while a file is removed: two
 * producers that start at the same time take turns, and a producer does not remove the file of
 * its successor.  A temporary name that exists while the lock is free was left by a start that
 * died, and is removed.  If another program keeps the lock, a start continues without it and
 * leaves temporary names alone; the file is not removed at the end, because it may be a
 * successor's, and the next start replaces it.  The Python library uses the same lock and names,
 * so that each can replace the other.
 *
 * The directory stays open while the file exists: the removal then works after a chdir(2), such
 * as that of daemon(3), and if the process has no file descriptors left.
 *
 * If systemd created the socket (LISTEN_FDS, see sd_listen_fds(3)), that socket is used, and its
 * file is left alone.
 */
#ifndef APACHEWS_SOCKET_FILE_H
#define APACHEWS_SOCKET_FILE_H

#include <sys/types.h>

#include "apachews.h"

struct socket_file {
    char *path;
    int fd;           /* listening, non-blocking; -1 once it is closed */
    int directory_fd; /* the directory of a file that will be removed; else -1 */
    bool is_inherited;
    dev_t device;
    ino_t inode;
};

bool socket_file_open(struct socket_file *file, const char *path, const apachews_options *options,
                      apachews_error *error);
/* Remove the file if it is still this one; the socket continues to listen. */
void socket_file_remove(struct socket_file *file);
/* Stop listening, and remove the file if it is still this one; a second call does nothing. */
void socket_file_close(struct socket_file *file);

#endif
