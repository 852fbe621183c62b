/* An OpenAI client that measures: `load PORT BODY_FILE MODE key=value ...`. One request at a time per connection.
 *
 * MODE closed  `conns` connections begun `gap_us` apart, each asks again as soon as it has its answer
 *      open    `rate` requests/s with exponential gaps, timed from when each was due, on as many connections as it takes
 *      hold    `conns` streams begun `gap_us` apart and left to run; the window begins when all have said something
 *
 * `warm` seconds pass, then the window of `seconds`: "begin" and "end" are printed then. Afterwards what is under way may
 * end (at most `limit` seconds). The last line is JSON: answers, wrong (another status, or not what the engine says: `chunks`
 * texts of `text` bytes), lost (broken off), chunks, seconds, peak (most streams open at once), and of the window in us, as
 * {"n", "p50", "p99", "max"}: `answer` (until its end), `first` (until its first text), `hop` (each later text, from the
 * time in it).
 */
#include "common.h"

enum where { HEAD, SIZE, DATA, DATA_END, TRAILER, FIXED, UNTIL_CLOSE };

struct conn {
    int fd, busy, status, streaming, marks, digits, waits, spoke;
    enum where where;
    size_t left, filled;
    int line; /* bytes of the present line of a chunked body's framing */
    uint64_t began, stamp;
    unsigned tail; /* the last four bytes of the body: does it end in [DONE]? */
    int done;
    struct buffer head, out;
};

struct samples {
    uint32_t *at; /* ns / 16 */
    size_t len, cap;
};

static struct conn **idle;
static size_t idle_len, idle_cap;
static struct samples answers, firsts, hops;
static unsigned long good, wrong, lost, in_window, chunks_seen, open_now, streaming_now, peak;
static int port, epoll_fd, measuring, want_chunks = 1, want_text = 20;
static struct buffer request;

static void sample(struct samples *s, uint64_t ns) {
    if (!measuring) return;
    if (s->len == s->cap) s->at = realloc(s->at, sizeof *s->at * (s->cap = s->cap ? s->cap * 2 : 65536));
    s->at[s->len++] = ns / 16 > UINT32_MAX ? UINT32_MAX : (uint32_t)(ns / 16);
}

static int smaller(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void print_samples(const char *name, struct samples *s) {
    qsort(s->at, s->len, sizeof *s->at, smaller);
#define AT(part) (s->len ? s->at[(size_t)((double)(s->len - 1) * part)] * 16 / 1000.0 : 0.0)
    printf(",\"%s\":{\"n\":%zu,\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, s->len, AT(0.5), AT(0.99), AT(1.0));
}

static struct conn *connected(void) {
    struct conn *c = calloc(1, sizeof *c);
    c->fd = connecting(port);
    watch(epoll_fd, EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
    return c;
}

static void close_conn(struct conn *c) {
    for (size_t i = 0; i < idle_len; i++)
        if (idle[i] == c) {
            memmove(idle + i, idle + i + 1, (--idle_len - i) * sizeof *idle);
            break;
        }
    close(c->fd);
    free(c->head.at);
    free(c->out.at);
    free(c);
}

static void rest(struct conn *c) {
    if (idle_len == idle_cap) idle = realloc(idle, sizeof *idle * (idle_cap = idle_cap ? idle_cap * 2 : 1024));
    idle[idle_len++] = c;
}

static void over(struct conn *c) {
    c->busy = 0;
    open_now--;
    if (c->spoke) streaming_now--;
    c->spoke = 0;
}

static void broken(struct conn *c) {
    if (c->busy) {
        lost++;
        over(c);
    }
    close_conn(c);
}

/* -1: it is broken. */
static int push(struct conn *c) {
    int left = flush_to(c->fd, &c->out);
    if (left >= 0 && left != c->waits) watch(epoll_fd, EPOLL_CTL_MOD, c->fd, left ? EPOLLIN | EPOLLOUT : EPOLLIN, c);
    c->waits = left;
    return left < 0 ? -1 : 0;
}

static void ask(struct conn *c, uint64_t began) {
    struct buffer head = c->head, out = c->out;
    int fd = c->fd, waits = c->waits;
    memset(c, 0, sizeof *c);
    c->head = head, c->out = out, c->fd = fd, c->waits = waits;
    c->head.len = 0;
    c->busy = 1;
    c->began = began;
    open_now++;
    add(&c->out, request.at, request.len);
    if (push(c)) broken(c);
}

/* A byte of the answer's own text. */
static void body_byte(struct conn *c, char byte, uint64_t now) {
    if (c->digits) {
        c->stamp = c->stamp * 10 + (uint64_t)(byte - '0');
        if (--c->digits) return;
        c->marks++;
        if (measuring) chunks_seen++;
        if (c->marks > 1)
            sample(&hops, now - c->stamp);
        else {
            sample(&firsts, now - c->began);
            c->spoke = 1;
            if (++streaming_now > peak) peak = streaming_now;
        }
    } else if (byte == '@') {
        c->digits = STAMP_DIGITS;
        c->stamp = 0;
    } else if (byte == '~')
        c->filled++;
    c->tail = c->tail << 8 | (unsigned char)byte;
    if (c->tail == ('O' << 24 | 'N' << 16 | 'E' << 8 | ']')) c->done = 1;
}

/* 1: the head is whole. */
static int head_byte(struct conn *c, char byte) {
    add(&c->head, &byte, 1);
    if (c->head.len < 4 || memcmp(c->head.at + c->head.len - 4, "\r\n\r\n", 4)) return 0;
    add(&c->head, "", 1);
    c->status = atoi(c->head.at + 9);
    const char *type = field(c->head.at, c->head.len, "\r\nContent-Type:");
    c->streaming = type && !strncmp(type, "text/event-stream", 17);
    const char *length = field(c->head.at, c->head.len, "\r\nContent-Length:");
    if (field(c->head.at, c->head.len, "\r\nTransfer-Encoding:"))
        c->where = SIZE;
    else if (length)
        c->where = FIXED, c->left = strtoul(length, NULL, 10);
    else
        c->where = UNTIL_CLOSE;
    return 1;
}

/* 1: the answer is whole with this byte. */
static int take_byte(struct conn *c, char byte, uint64_t now) {
    switch (c->where) {
    case HEAD:
        return head_byte(c, byte) && c->where == FIXED && !c->left;
    case FIXED:
        body_byte(c, byte, now);
        return --c->left == 0;
    case UNTIL_CLOSE:
        body_byte(c, byte, now);
        return 0;
    case SIZE:
        if (byte == '\n') {
            c->where = c->left ? DATA : TRAILER;
            c->line = 0;
        } else if (byte != '\r')
            c->left = c->left * 16 + (size_t)(byte <= '9' ? byte - '0' : (byte | 32) - 'a' + 10);
        return 0;
    case DATA:
        body_byte(c, byte, now);
        if (--c->left == 0) c->where = DATA_END;
        return 0;
    case DATA_END:
        if (byte == '\n') c->where = SIZE;
        return 0;
    case TRAILER:
        if (byte == '\n' && c->line == 0) return 1;
        c->line = byte == '\n' ? 0 : c->line + (byte != '\r');
    }
    return 0;
}

static void finished(struct conn *c, uint64_t now) {
    size_t fill = (size_t)want_chunks * (size_t)(want_text > STAMP_DIGITS + 1 ? want_text - STAMP_DIGITS - 1 : 0);
    int right = c->status == 200 && c->marks == want_chunks && c->filled == fill && c->done == c->streaming;
    if (!right && wrong++ == 0)
        fprintf(stderr, "wrong: status %d, %d of %d texts, %zu of %zu bytes\n%s\n", c->status, c->marks, want_chunks, c->filled, fill, c->head.at);
    good += (unsigned)right;
    if (measuring) in_window++;
    sample(&answers, now - c->began);
    over(c);
}

/* What came; 1: an answer is whole, -1: the connection is at its end (and with it the answer perhaps). */
static int take(struct conn *c) {
    static char data[262144];
    ssize_t n = recv(c->fd, data, sizeof data, 0);
    uint64_t now = now_ns();
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) {
        if (n == 0 && c->busy && c->where == UNTIL_CLOSE) finished(c, now);
        return -1;
    }
    for (ssize_t i = 0; i < n; i++) {
        if (!c->busy) return -1; /* more than was asked for */
        if (take_byte(c, data[i], now)) finished(c, now);
    }
    if (c->busy) return 0;
    const char *stays = field(c->head.at, c->head.len, "\r\nConnection:");
    return stays && !strncasecmp(stays, "close", 5) ? -1 : 1;
}

static double option(int argc, char **argv, const char *name, double otherwise) {
    size_t n = strlen(name);
    for (int i = 4; i < argc; i++)
        if (!strncmp(argv[i], name, n) && argv[i][n] == '=') return atof(argv[i] + n + 1);
    return otherwise;
}

static uint64_t random_gap(double rate) {
    static uint64_t seed = 88172645463325252ull;
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    double u = ((double)(seed >> 11) + 1) / 9007199254740993.0, x = 0, term; /* -ln(u), without libm */
    while (u < 0.5) u *= 2, x += 0.69314718055994531;
    double z = (u - 1) / (u + 1);
    term = z;
    for (int k = 1; k < 24; k += 2, term *= z * z) x -= 2 * term / k;
    return (uint64_t)(x / rate * 1e9);
}

static void read_request(const char *file) {
    struct buffer body = {0};
    FILE *f = fopen(file, "rb");
    if (!f) die(file);
    reserve(&body, 4 << 20);
    body.len = fread(body.at, 1, body.cap, f);
    fclose(f);
    char head[256];
    add(&request, head, (size_t)sprintf(head, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", port, body.len));
    add(&request, body.at, body.len);
}

int main(int argc, char **argv) {
    if (argc < 4) return fprintf(stderr, "usage: load PORT BODY_FILE closed|open|hold [key=value ...]\n"), 2;
    prepare_process();
    port = atoi(argv[1]);
    read_request(argv[2]);
    int closed = !strcmp(argv[3], "closed"), held = !strcmp(argv[3], "hold"), counted = closed || held;
    unsigned long conns = (unsigned long)option(argc, argv, "conns", 32), begun = 0;
    double rate = option(argc, argv, "rate", 1000);
    uint64_t warm = (uint64_t)(option(argc, argv, "warm", 0.5) * 1e9), span = (uint64_t)(option(argc, argv, "seconds", 2) * 1e9);
    uint64_t gap = (uint64_t)(option(argc, argv, "gap_us", 0) * 1e3), limit = (uint64_t)(option(argc, argv, "limit", 30) * 1e9);
    want_chunks = (int)option(argc, argv, "chunks", 1);
    want_text = (int)option(argc, argv, "text", 20);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    uint64_t now = now_ns(), next = now, begin = held ? UINT64_MAX : now + warm, end = UINT64_MAX, last = UINT64_MAX;
    uint64_t patience = held ? now + gap * conns + limit : UINT64_MAX; /* for all streams to have begun */
    uint64_t window_began = 0, window_ended = 0;
    struct epoll_event events[256];
    for (;;) {
        now = now_ns();
        if (held && begin == UINT64_MAX && (streaming_now == conns || now > patience)) begin = now + warm;
        if (begin != UINT64_MAX && !window_began && now >= begin) {
            measuring = 1, window_began = now, end = now + span;
            puts("begin"), fflush(stdout);
        }
        if (measuring && now >= end) {
            measuring = 0, window_ended = now, last = now + limit, next = UINT64_MAX;
            puts("end"), fflush(stdout);
        }
        if (window_ended && (!open_now || now >= last)) break;
        for (; now >= next && (!counted || begun < conns); begun++) {
            struct conn *c = idle_len ? idle[--idle_len] : connected();
            ask(c, next);
            next += counted ? gap : random_gap(rate);
        }
        if (counted && begun == conns) next = UINT64_MAX;
        uint64_t due = next;
        if (!window_began && begin < due) due = begin;
        if (measuring && end < due) due = end;
        if (window_ended && last < due) due = last;
        if (held && begin == UINT64_MAX && patience < due) due = patience;
        int n = wait_until(epoll_fd, events, 256, due, now);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT && push(c)) {
                broken(c);
                continue;
            }
            if (!(events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
            int got = take(c);
            if (got < 0) {
                broken(c);
                c = closed && !window_ended ? connected() : NULL;
            } else if (got == 0)
                continue;
            if (c && closed && !window_ended)
                ask(c, now_ns());
            else if (c)
                rest(c);
        }
    }
    lost += open_now;
    printf("{\"answers\":%lu,\"good\":%lu,\"wrong\":%lu,\"lost\":%lu,\"chunks\":%lu,\"seconds\":%.6f,\"peak\":%lu", in_window, good, wrong, lost, chunks_seen, (double)(window_ended - window_began) / 1e9, peak);
    print_samples("answer", &answers);
    print_samples("first", &firsts);
    print_samples("hop", &hops);
    puts("}");
    return 0;
}
