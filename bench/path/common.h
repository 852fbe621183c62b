/* What engine.c and load.c share: time, growing buffers, sockets, header fields. Linux >= 5.11 (epoll_pwait2). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STAMP_DIGITS 18 /* CLOCK_MONOTONIC in ns, leading zeros */

static void die(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Events until `due` (ns; 0: now already, UINT64_MAX: for ever). */
static int wait_until(int epoll, struct epoll_event *events, int most, uint64_t due, uint64_t now) {
    uint64_t left = due > now ? due - now : 0;
    struct timespec t = {(time_t)(left / 1000000000ull), (long)(left % 1000000000ull)};
    int n = epoll_pwait2(epoll, events, most, due == UINT64_MAX ? NULL : &t, NULL);
    if (n < 0 && errno != EINTR) die("epoll_pwait2");
    return n < 0 ? 0 : n;
}

static void watch(int epoll, int how, int fd, uint32_t what, void *data) {
    struct epoll_event e = {.events = what, .data.ptr = data};
    if (epoll_ctl(epoll, how, fd, &e) < 0) die("epoll_ctl");
}

/* As exact as the machine allows: sleeps are not stretched, sockets do not wait for more, every descriptor is ours. */
static void prepare_process(void) {
    prctl(PR_SET_TIMERSLACK, 1);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

static void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

struct buffer {
    char *at;
    size_t len, cap;
};

static void reserve(struct buffer *b, size_t more) {
    if (b->cap - b->len >= more) return;
    b->cap = (b->len + more) * 2;
    b->at = realloc(b->at, b->cap);
    if (!b->at) die("realloc");
}

static void add(struct buffer *b, const void *what, size_t size) {
    reserve(b, size);
    memcpy(b->at + b->len, what, size);
    b->len += size;
}

static void drop(struct buffer *b, size_t size) {
    memmove(b->at, b->at + size, b->len - size);
    b->len -= size;
}

/* Sends what is in `b`; 0 all, 1 some is left, -1 the connection is broken. */
static int flush_to(int fd, struct buffer *b) {
    while (b->len) {
        ssize_t n = send(fd, b->at, b->len, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN || errno == EINTR ? 1 : -1;
        drop(b, (size_t)n);
    }
    return 0;
}

/* The value of field `name` ("\r\nName:", any case) within the head, or NULL. */
static const char *field(const char *head, size_t size, const char *name) {
    size_t n = strlen(name);
    for (size_t i = 0; i + n <= size; i++)
        if (head[i] == '\r' && !strncasecmp(head + i, name, n)) {
            const char *value = head + i + n;
            while (*value == ' ') value++;
            return value;
        }
    return NULL;
}

/* A socket that listens, or one that connects; exits when it cannot. */
static inline int listening(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = loopback(port);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(fd, 4096) < 0) die("listen");
    return fd;
}

static inline int connecting(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = loopback(port);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) < 0) die("connect");
    fcntl(fd, F_SETFL, O_NONBLOCK);
    no_delay(fd);
    return fd;
}
