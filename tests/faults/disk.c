/* Preloaded into a server (LD_PRELOAD), it writes down what the server does to the files of one folder, and lets
 * calls fail. tests/faults/disk.py compiles it, says what is to fail, and reads what was written down.
 *
 * DISK_FOLDER   the folder
 * DISK_JOURNAL  the file to write to: for each call a struct record, then the bytes of a write
 * DISK_FAULTS   a folder; while it has a file "<call> <name>" (such as "sync chat.db-wal"), that call on that file
 *               fails with the errno that stands in it
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum { WRITE = 1, TRUNCATE, SYNC, UNLINK };
static const char *const calls[] = {"", "write", "truncate", "sync", "unlink"};

struct record {
    uint32_t call, failed;
    uint64_t offset, size; /* of a write; of a truncate the new size is `offset` */
    char name[40];
};

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

/* The file's name within the folder, the folder itself being ".", or NULL for all other files. */
static const char *within(const char *path) {
    const char *folder = getenv("DISK_FOLDER");
    size_t size = folder ? strlen(folder) : 0;
    if (!size || strncmp(path, folder, size) || (path[size] && path[size] != '/')) return NULL;
    return path[size] ? path + size + 1 : ".";
}

static const char *name_of(int fd, char *path, size_t most) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, most - 1);
    if (size <= 0) return NULL;
    path[size] = 0;
    return within(path);
}

/* The errno that this call on this file is to fail with, or 0. */
static int fault(int call, const char *name) {
    char path[4096], text[16] = "";
    snprintf(path, sizeof path, "%s/%s %s", getenv("DISK_FAULTS"), calls[call], name);
    int fd = REAL(open)(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    return size > 0 ? atoi(text) : 0;
}

static void note(int call, int failed, const char *name, uint64_t offset, const void *data, uint64_t size) {
    static int journal = -1;
    struct record record = {call, failed, offset, size, ""};
    strncpy(record.name, name, sizeof record.name - 1);
    struct iovec parts[] = {{&record, sizeof record}, {(void *)data, size}};
    pthread_mutex_lock(&one_at_a_time);
    if (journal < 0) journal = REAL(open)(getenv("DISK_JOURNAL"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (writev(journal, parts, 2) != (ssize_t)(sizeof record + size)) abort();
    pthread_mutex_unlock(&one_at_a_time);
}

/* Whether the call is to fail; if so it is written down, and errno is set. */
static int fails(int call, const char *name) {
    int error = fault(call, name);
    if (error) {
        note(call, 1, name, 0, NULL, 0);
        errno = error;
    }
    return error;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    char path[4096];
    const char *name = name_of(fd, path, sizeof path);
    if (name && fails(WRITE, name)) return -1;
    ssize_t written = REAL(pwrite)(fd, data, size, offset);
    if (name && written > 0) note(WRITE, 0, name, offset, data, written);
    return written;
}

ssize_t write(int fd, const void *data, size_t size) {
    char path[4096];
    const char *name = name_of(fd, path, sizeof path);
    if (name && fails(WRITE, name)) return -1;
    off_t offset = name ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t written = REAL(write)(fd, data, size);
    if (name && written > 0) note(WRITE, 0, name, offset, data, written);
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return pwrite(fd, data, size, offset); }

int ftruncate(int fd, off_t size) {
    char path[4096];
    const char *name = name_of(fd, path, sizeof path);
    if (name && fails(TRUNCATE, name)) return -1;
    int result = REAL(ftruncate)(fd, size);
    if (name && !result) note(TRUNCATE, 0, name, size, NULL, 0);
    return result;
}

int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

static int synced(int fd, int (*sync)(int)) {
    char path[4096];
    const char *name = name_of(fd, path, sizeof path);
    if (name && fails(SYNC, name)) return -1;
    int result = sync(fd);
    if (name) note(SYNC, result != 0, name, 0, NULL, 0);
    return result;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }

int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

int unlink(const char *path) {
    const char *name = within(path);
    if (name && fails(UNLINK, name)) return -1;
    int result = REAL(unlink)(path);
    if (name && !result) note(UNLINK, 0, name, 0, NULL, 0);
    return result;
}
