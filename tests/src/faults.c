/* Faults of a disk, a clock and a network, injected into one process under test (LD_PRELOAD).
 *
 * LAKEBED_FAULTS names a file that is mapped shared; the test writes commands into it, in native byte order:
 *   0: u32  fsync and fdatasync fail with EIO, and what they were to write is lost, as Linux does it
 *   4: u32  fsync and fdatasync say that they worked and did nothing: an acknowledgement before the flush
 *   8: u32  the power is cut: what pwrite wrote since the last fsync is undone, or some of it, and the process ends
 *  12: u32  how often an fsync failed (written here)
 *  16: i64  nanoseconds that the wall clock is wrong
 *  24: u32  nothing leaves any socket
 *  28: u32  nothing arrives at any socket
 *  32: u32  microseconds that each fsync and fdatasync takes longer
 * A socket that may not be used says EAGAIN, and its owner waits for an event that may never come: as with a real
 * partition the connection has to be given up by keep-alive.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct commands {
    volatile uint32_t fail, lie, cut, failed;
    volatile int64_t clock;
    volatile uint32_t mute, deaf, slow;
};

/* What a write replaced. */
struct change {
    struct change *older;
    dev_t dev;
    ino_t ino;
    int fd;
    off_t at;
    size_t length;
    char was[];
};

static struct commands none, *commands = &none;
static struct change *newest;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void put_back(struct change *change) {
    syscall(SYS_pwrite64, change->fd, change->was, change->length, change->at);
}

static void *wait_for_the_cut(void *unused) {
    struct timespec pause = {0, 1000000};
    (void)unused;
    while (!commands->cut)
        nanosleep(&pause, NULL);
    pthread_mutex_lock(&lock);
    srandom((unsigned)syscall(SYS_gettid));
    for (struct change *change = newest; change; change = change->older)
        if (commands->lie || random() % 4 != 0)
            put_back(change);
    _exit(137);
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LAKEBED_FAULTS");
    pthread_t thread;
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof *commands, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED)
        abort();
    commands = mapped;
    pthread_create(&thread, NULL, wait_for_the_cut, NULL);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t at) {
    struct stat stat;
    ssize_t written;
    pthread_mutex_lock(&lock);
    struct change *change = commands != &none && fstat(fd, &stat) == 0 && S_ISREG(stat.st_mode)
                                ? calloc(1, sizeof *change + length)
                                : NULL;
    if (change)
        syscall(SYS_pread64, fd, change->was, length, at);
    written = syscall(SYS_pwrite64, fd, bytes, length, at);
    if (change && written > 0) {
        int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        *change = (struct change){newest, stat.st_dev, stat.st_ino, own, at, (size_t)written};
        newest = change;
    } else {
        int error = errno;
        free(change);
        errno = error;
    }
    pthread_mutex_unlock(&lock);
    return written;
}

/* The changes of a file are on disk, or lost. */
static void settle(int fd, int lost) {
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return;
    for (struct change **link = &newest; *link;) {
        struct change *change = *link;
        if (change->dev != stat.st_dev || change->ino != stat.st_ino) {
            link = &change->older;
            continue;
        }
        if (lost)
            put_back(change);
        close(change->fd);
        *link = change->older;
        free(change);
    }
}

static int sync_file(long call, int fd) {
    int result = 0;
    if (commands->lie)
        return 0;
    if (commands->slow)
        usleep(commands->slow);
    pthread_mutex_lock(&lock);
    int fail = commands->fail != 0;
    if (!fail)
        result = (int)syscall(call, fd);
    settle(fd, fail);
    pthread_mutex_unlock(&lock);
    if (fail) {
        __atomic_fetch_add(&commands->failed, 1, __ATOMIC_SEQ_CST);
        errno = EIO;
        return -1;
    }
    return result;
}

int fsync(int fd) { return sync_file(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_file(SYS_fdatasync, fd); }

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_REALTIME && result == 0) {
        int64_t all = time->tv_sec * 1000000000LL + time->tv_nsec + commands->clock;
        time->tv_sec = all / 1000000000LL;
        time->tv_nsec = all % 1000000000LL;
    }
    return result;
}

static int held(int fd, uint32_t hold) {
    int error = errno, kind;
    socklen_t length = sizeof kind;
    int held = hold && getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &length) == 0 && kind == SOCK_STREAM;
    errno = held ? EAGAIN : error;
    return held;
}

ssize_t send(int fd, const void *bytes, size_t length, int flags) {
    return held(fd, commands->mute) ? -1 : syscall(SYS_sendto, fd, bytes, length, flags, NULL, 0);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return held(fd, commands->mute) ? -1 : syscall(SYS_writev, fd, parts, count);
}

ssize_t recv(int fd, void *bytes, size_t length, int flags) {
    return held(fd, commands->deaf) ? -1 : syscall(SYS_recvfrom, fd, bytes, length, flags, NULL, NULL);
}

ssize_t readv(int fd, const struct iovec *parts, int count) {
    return held(fd, commands->deaf) ? -1 : syscall(SYS_readv, fd, parts, count);
}
