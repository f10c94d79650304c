#include "system.h"

#include "socket_file.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "error.h"

/* The size of sockaddr_un.sun_path, without its NUL. */
#define MAX_PATH (sizeof((struct sockaddr_un *)0)->sun_path - 1)
/* The backlog of listen(); the kernel limits it to net.core.somaxconn. */
#define BACKLOG 4096
/* The temporary name beside the path.  It does not end in .ws: Apache would serve it. */
#define BESIDE ".apachews-"
#define BESIDE_DIGITS 8
/* SD_LISTEN_FDS_START. */
#define FIRST_INHERITED 3
#define DEFAULT_MODE 0660
/* How long to retry the lock of the directory; producers hold it for milliseconds. */
#define LOCK_TIMEOUT_MS 1000
#define LOCK_TRIES 100

static void set_system_error(apachews_error *error, const char *path, const char *what)
{
    int number = errno;
    error_set(error, APACHEWS_SYSTEM_ERROR, number, "%s: %s: %s", path, what, strerror(number));
}

/* ---- Sockets that systemd created ---- */

static int inherited_count(void)
{
    const char *pid = getenv("LISTEN_PID");
    const char *count = getenv("LISTEN_FDS");
    if (pid == NULL || count == NULL || strtol(pid, NULL, 10) != (long)getpid()) {
        return 0;
    }
    long number = strtol(count, NULL, 10);
    return number > 0 && number < 65536 ? (int)number : 0;
}

static bool has_option(int fd, int option, int expected)
{
    int value;
    socklen_t size = sizeof value;
    return getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 && value == expected;
}

static bool listens_on(int fd, const char *path)
{
    struct sockaddr_un address = {0};
    socklen_t size = sizeof address - 1; /* leaves a NUL at the end */
    struct stat bound, wanted;
    if (!has_option(fd, SO_TYPE, SOCK_STREAM) || !has_option(fd, SO_ACCEPTCONN, 1) ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0 ||
        address.sun_family != AF_UNIX || address.sun_path[0] == '\0') {
        return false;
    }
    if (strcmp(address.sun_path, path) == 0) {
        return true;
    }
    /* The unit and the program may use different paths to the same file. */
    return stat(address.sun_path, &bound) == 0 && stat(path, &wanted) == 0 &&
           bound.st_dev == wanted.st_dev && bound.st_ino == wanted.st_ino;
}

/* Return a non-blocking duplicate of the inherited socket that listens on the path, or -1. */
static int inherited_socket(const char *path)
{
    int count = inherited_count();
    for (int fd = FIRST_INHERITED; fd < FIRST_INHERITED + count; fd++) {
        /* LISTEN_FDS is for this process, not for its children. */
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        if (!listens_on(fd, path)) {
            continue;
        }
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        int flags = copy >= 0 ? fcntl(copy, F_GETFL) : -1;
        if (flags >= 0 && fcntl(copy, F_SETFL, flags | O_NONBLOCK) == 0) {
            return copy;
        }
        if (copy >= 0) {
            close(copy);
        }
    }
    return -1;
}

/* ---- The directory ---- */

/* Retry with a limit: any process that can read the directory can keep its lock for ever. */
static bool lock(int directory_fd)
{
    const struct timespec pause = {.tv_nsec = LOCK_TIMEOUT_MS * 1000000L / LOCK_TRIES};
    int tries = 0;
    while (flock(directory_fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            return false;
        }
        if (++tries > LOCK_TRIES) {
            errno = EWOULDBLOCK;
            return false;
        }
        nanosleep(&pause, NULL);
    }
    return true;
}

/* Closing is not enough: a forked child may have a copy of the descriptor. */
static void unlock(int directory_fd)
{
    (void)flock(directory_fd, LOCK_UN);
}

/* The last component of a path. */
static const char *name_in_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* Open the directory of a path; -1: errno. */
static int open_directory(const char *path)
{
    char directory[MAX_PATH + 1] = ".";
    const char *slash = strrchr(path, '/');
    if (slash != NULL) {
        size_t length = slash == path ? 1 : (size_t)(slash - path);
        memcpy(directory, path, length);
        directory[length] = '\0';
    }
    return open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static bool is_left_over(const char *name)
{
    size_t prefix = strlen(BESIDE);
    return strncmp(name, BESIDE, prefix) == 0 && strlen(name + prefix) == BESIDE_DIGITS &&
           strspn(name + prefix, "0123456789abcdef") == BESIDE_DIGITS;
}

static void remove_left_overs(int directory_fd)
{
    int fd = openat(directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
    if (directory == NULL) {
        if (fd >= 0) {
            close(fd);
        }
        return; /* left-over files are harmless */
    }
    struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) {
        if (is_left_over(entry->d_name)) {
            /* Fails for another user's file in a directory like /tmp. */
            (void)unlinkat(directory_fd, entry->d_name, 0);
        }
    }
    closedir(directory);
}

static socklen_t make_address(struct sockaddr_un *address, const char *path)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address->sun_path, path, strlen(path) + 1);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
}

/* 1: a producer listens on the path; 0: it does not; -1: *error is set. */
static int is_live(const char *path, apachews_error *error)
{
    struct stat status;
    struct sockaddr_un address;
    if (lstat(path, &status) != 0) {
        if (errno == ENOENT) {
            return 0;
        }
        set_system_error(error, path, "cannot read its status");
        return -1;
    }
    if (!S_ISSOCK(status.st_mode)) {
        error_set(error, APACHEWS_NOT_A_SOCKET, 0,
                  "%s: the file is not a socket; move it away, or serve on another path",
                  path);
        return -1;
    }
    int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (probe < 0) {
        set_system_error(error, path, "cannot create a socket");
        return -1;
    }
    socklen_t size = make_address(&address, path);
    int result = connect(probe, (struct sockaddr *)&address, size);
    /* EAGAIN: the backlog is full, so the producer is alive. */
    int live = result == 0 || errno == EAGAIN ? 1 : errno == ECONNREFUSED ? 0 : -1;
    if (live < 0) {
        set_system_error(error, path, "cannot determine whether another producer listens here");
    }
    close(probe);
    return live;
}

static bool find_group(const char *name, gid_t *id, apachews_error *error)
{
    struct group entry, *found = NULL;
    size_t size = 16384;
    char *buffer = NULL;
    int result = ERANGE;
    while (result == ERANGE && size <= (1u << 24)) {
        char *larger = realloc(buffer, size);
        if (larger == NULL) {
            result = ENOMEM;
            break;
        }
        buffer = larger;
        result = getgrnam_r(name, &entry, buffer, size, &found);
        size *= 4;
    }
    char *end;
    unsigned long number = strtoul(name, &end, 10);
    bool is_number = isdigit((unsigned char)name[0]) && *end == '\0' && number < UINT32_MAX;
    if (found != NULL) {
        *id = entry.gr_gid;
    } else if (is_number) {
        *id = (gid_t)number;
    } else {
        error_set(error, APACHEWS_NO_GROUP, 0, "unknown group \"%.80s\"; see /etc/group", name);
    }
    free(buffer);
    return found != NULL || is_number;
}

/* Bind to a temporary name beside the path, listen, and rename it onto the path. */
static bool listen_beside(struct socket_file *file, int directory_fd, unsigned mode,
                          const gid_t *group, apachews_error *error)
{
    char name[sizeof BESIDE + BESIDE_DIGITS];
    char beside[MAX_PATH + sizeof name];
    struct sockaddr_un address;
    struct stat status;
    uint32_t number;
    if (getrandom(&number, sizeof number, 0) != sizeof number) {
        set_system_error(error, file->path, "cannot get random bytes");
        return false;
    }
    snprintf(name, sizeof name, BESIDE "%08x", (unsigned)number);
    const char *slash = strrchr(file->path, '/');
    int directory_bytes = slash != NULL ? (int)(slash - file->path) + 1 : 0;
    int size = snprintf(beside, sizeof beside, "%.*s%s", directory_bytes, file->path, name);
    /* The temporary name may be too long beside a path that just fits; this one always fits. */
    if (size < 0 || (size_t)size > MAX_PATH) {
        snprintf(beside, sizeof beside, "/proc/self/fd/%d/%s", directory_fd, name);
    }
    if (fchmod(file->fd, mode) != 0) {
        set_system_error(error, file->path, "cannot set its permissions");
        return false;
    }
    socklen_t address_size = make_address(&address, beside);
    if (bind(file->fd, (struct sockaddr *)&address, address_size) != 0) {
        set_system_error(error, file->path, "cannot create a socket file in its directory");
        return false;
    }
    const char *problem = NULL;
    if (group != NULL && fchownat(directory_fd, name, (uid_t)-1, *group, 0) != 0) {
        problem = "cannot change its group";
    } else if (fchmodat(directory_fd, name, mode, 0) != 0) { /* bind() applied the umask */
        problem = "cannot set its permissions";
    } else if (listen(file->fd, BACKLOG) != 0) {
        problem = "cannot listen";
    } else if (fstatat(directory_fd, name, &status, AT_SYMLINK_NOFOLLOW) != 0) {
        problem = "cannot read its status";
    } else if (renameat(directory_fd, name, directory_fd, name_in_directory(file->path)) != 0) {
        problem = "cannot rename the socket file onto it";
    }
    if (problem != NULL) {
        set_system_error(error, file->path, problem);
        (void)unlinkat(directory_fd, name, 0);
        return false;
    }
    file->device = status.st_dev;
    file->inode = status.st_ino;
    return true;
}

static bool create(struct socket_file *file, const apachews_options *options, apachews_error *error)
{
    gid_t group = 0;
    if (options->group != NULL && !find_group(options->group, &group, error)) {
        return false;
    }
    file->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (file->fd < 0) {
        set_system_error(error, file->path, "cannot create a socket");
        return false;
    }
    int directory_fd = open_directory(file->path);
    if (directory_fd < 0) {
        set_system_error(error, file->path, "cannot open its directory");
        return false;
    }
    bool is_locked = lock(directory_fd);
    if (!is_locked && errno != EWOULDBLOCK) {
        set_system_error(error, file->path, "cannot lock its directory");
        close(directory_fd);
        return false;
    }
    int live = is_live(file->path, error);
    bool is_done = false;
    if (live > 0 && options->exclusive) {
        error_set(error, APACHEWS_IN_USE, 0,
                  "%s: another producer listens here; stop it, or serve on another path",
                  file->path);
    } else if (live >= 0) {
        if (is_locked) {
            remove_left_overs(directory_fd);
        }
        is_done = listen_beside(file, directory_fd, options->mode ? options->mode : DEFAULT_MODE,
                                options->group != NULL ? &group : NULL, error);
    }
    if (is_locked) {
        unlock(directory_fd);
    }
    if (is_done) {
        file->directory_fd = directory_fd;
    } else {
        close(directory_fd);
    }
    return is_done;
}

bool socket_file_open(struct socket_file *file, const char *path, const apachews_options *options,
                      apachews_error *error)
{
    *file = (struct socket_file){.fd = -1, .directory_fd = -1};
    if (strlen(path) > MAX_PATH) {
        error_set(error, APACHEWS_PATH_TOO_LONG, 0,
                  "the path exceeds the %zu bytes of a Unix socket's; choose a shorter path: "
                  "%.240s",
                  MAX_PATH, path);
        return false;
    }
    file->path = strdup(path);
    if (file->path == NULL) {
        error_set(error, APACHEWS_SYSTEM_ERROR, ENOMEM, "out of memory");
        return false;
    }
    file->fd = inherited_socket(path);
    if (file->fd >= 0) {
        file->is_inherited = true;
        return true;
    }
    if (create(file, options, error)) {
        return true;
    }
    socket_file_close(file);
    return false;
}

void socket_file_remove(struct socket_file *file)
{
    struct stat status;
    if (file->directory_fd < 0) {
        return;
    }
    const char *name = name_in_directory(file->path);
    if (lock(file->directory_fd)) {
        if (fstatat(file->directory_fd, name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
            status.st_dev == file->device && status.st_ino == file->inode) {
            (void)unlinkat(file->directory_fd, name, 0);
        }
        unlock(file->directory_fd);
    }
    close(file->directory_fd);
    file->directory_fd = -1;
}

void socket_file_close(struct socket_file *file)
{
    socket_file_remove(file);
    if (file->fd >= 0) {
        close(file->fd);
        file->fd = -1;
    }
    free(file->path);
    file->path = NULL;
}
