/* A fake OpenAI engine that computes nothing: `engine PORT`.
 *
 * POST /v1/chat/completions answers `max_tokens` chunks. The client sets the rest in the body's `user`, "pace=US,text=N":
 * microseconds between two chunks (0: one after the other, each with a write of its own), bytes of text in each. A text is
 * "@" and the time it was sent (CLOCK_MONOTONIC, ns), filled up with "~". Not streamed: all texts in one answer, at once.
 * GET /stats: {"requests", "streams", "finished", "gone"}; gone: connections that were closed in the middle of an answer.
 */
#include "common.h"

#define ID "\"id\":\"fake-1\",\"created\":1700000000,\"model\":\"fake\""

struct conn {
    int fd, chunks, text, usage, streams, waits; /* chunks still to come; waits: for the peer to read */
    uint64_t pace, due;
    int place; /* in the heap, -1: in none */
    struct buffer in, out;
};

static struct {
    unsigned long requests, streams, finished, gone;
} count;
static struct conn **heap;
static int heap_len, heap_cap, epoll_fd;

static void put(int place, struct conn *c) {
    heap[place] = c;
    c->place = place;
}

static void up(int i, struct conn *c) {
    while (i && heap[(i - 1) / 2]->due > c->due) {
        put(i, heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    put(i, c);
}

static void down(int i, struct conn *c) {
    for (int kid; (kid = 2 * i + 1) < heap_len; i = kid) {
        if (kid + 1 < heap_len && heap[kid + 1]->due < heap[kid]->due) kid++;
        if (heap[kid]->due >= c->due) break;
        put(i, heap[kid]);
    }
    put(i, c);
}

static void schedule(struct conn *c) {
    if (heap_len == heap_cap) {
        heap_cap = heap_cap ? heap_cap * 2 : 1024;
        heap = realloc(heap, sizeof *heap * (size_t)heap_cap);
    }
    up(heap_len++, c);
}

static void unschedule(struct conn *c) {
    int at = c->place;
    if (at < 0) return;
    c->place = -1;
    struct conn *last = heap[--heap_len];
    if (last == c) return;
    if (at && heap[(at - 1) / 2]->due > last->due)
        up(at, last);
    else
        down(at, last);
}

static void hang_up(struct conn *c) {
    if (c->chunks) count.gone++;
    unschedule(c);
    close(c->fd);
    free(c->in.at);
    free(c->out.at);
    free(c);
}

/* -1: it is broken. */
static int send_out(struct conn *c) {
    int left = flush_to(c->fd, &c->out);
    if (left >= 0 && left != c->waits) {
        c->waits = left;
        watch(epoll_fd, EPOLL_CTL_MOD, c->fd, left ? EPOLLIN | EPOLLOUT : EPOLLIN, c);
    }
    return left < 0 ? -1 : 0;
}

static void add_text(struct buffer *b, int size) {
    char stamp[STAMP_DIGITS + 2];
    add(b, stamp, (size_t)sprintf(stamp, "@%0*llu", STAMP_DIGITS, (unsigned long long)now_ns()));
    int left = size - STAMP_DIGITS - 1;
    if (left <= 0) return;
    reserve(b, (size_t)left);
    memset(b->at + b->len, '~', (size_t)left);
    b->len += (size_t)left;
}

/* One server-sent event as one chunk of the answer's body. */
static void add_event(struct buffer *to, const struct buffer *event) {
    char size[16];
    add(to, size, (size_t)sprintf(size, "%zx\r\n", event->len));
    add(to, event->at, event->len);
    add(to, "\r\n", 2);
}

static void add_words(struct buffer *b, const char *words) {
    add(b, words, strlen(words));
}

static void add_chunk(struct conn *c) {
    static struct buffer event;
    event.len = 0;
    add_words(&event, "data: {" ID ",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"");
    add_text(&event, c->text);
    add_words(&event, c->chunks > 1 ? "\"},\"finish_reason\":null}]}\n\n" : "\"},\"finish_reason\":\"stop\"}]}\n\n");
    add_event(&c->out, &event);
    if (--c->chunks) return;
    if (c->usage) {
        event.len = 0;
        add_words(&event, "data: {" ID ",\"object\":\"chat.completion.chunk\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,"
                          "\"completion_tokens\":9,\"total_tokens\":18}}\n\n");
        add_event(&c->out, &event);
    }
    add_words(&c->out, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    count.finished++;
}

/* The whole number after `key` in the body (spaces may come between), or `otherwise`. */
static long number(const char *body, size_t size, const char *key, long otherwise) {
    const char *at = memmem(body, size, key, strlen(key));
    return at ? strtol(at + strlen(key), NULL, 10) : otherwise;
}

static int says(const char *body, size_t size, const char *key) {
    const char *at = memmem(body, size, key, strlen(key));
    if (!at) return 0;
    at += strlen(key);
    while (*at == ' ') at++;
    return !strncmp(at, "true", 4);
}

static void answer(struct conn *c, struct buffer *json, const char *status) {
    char head[128];
    add(&c->out, head, (size_t)sprintf(head, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", status, json->len));
    add(&c->out, json->at, json->len);
}

static int complete(struct conn *c, const char *body, size_t size) {
    static struct buffer json;
    count.requests++;
    c->chunks = (int)number(body, size, "\"max_tokens\":", 1);
    c->pace = (uint64_t)number(body, size, "pace=", 0) * 1000;
    c->text = (int)number(body, size, "text=", 20);
    c->streams = says(body, size, "\"stream\":");
    c->usage = says(body, size, "\"include_usage\":");
    if (c->chunks < 1) c->chunks = 1;
    if (!c->streams) {
        json.len = 0;
        add_words(&json, "{" ID ",\"object\":\"chat.completion\",\"choices\":[{\"index\":0,\"finish_reason\":\"stop\",\"message\":{\"role\":\"assistant\",\"content\":\"");
        for (; c->chunks; c->chunks--) add_text(&json, c->text);
        add_words(&json, "\"}}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9,\"total_tokens\":18}}");
        answer(c, &json, "200 OK");
        count.finished++;
        return send_out(c);
    }
    count.streams++;
    add_words(&c->out, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    add_chunk(c);
    if (c->chunks) {
        c->due = now_ns() + c->pace;
        schedule(c);
    }
    return send_out(c);
}

/* The requests that are complete; -1: hang up. */
static int serve(struct conn *c) {
    while (c->in.len && c->place < 0) {
        char *end = memmem(c->in.at, c->in.len, "\r\n\r\n", 4);
        if (!end) return 0;
        size_t head = (size_t)(end - c->in.at) + 4;
        const char *length = field(c->in.at, head, "\r\nContent-Length:");
        size_t body = length ? strtoul(length, NULL, 10) : 0;
        if (field(c->in.at, head, "\r\nTransfer-Encoding:")) return -1; /* nobody in this bench sends one */
        if (c->in.len < head + body) return 0;
        static struct buffer json;
        json.len = 0;
        int broken = 0;
        if (!strncmp(c->in.at, "POST /v1/chat/completions ", 26)) {
            c->in.at[c->in.len] = 0; /* take() leaves room */
            broken = complete(c, c->in.at + head, body);
        } else if (!strncmp(c->in.at, "GET /stats ", 11)) {
            char text[160];
            add(&json, text, (size_t)sprintf(text, "{\"requests\":%lu,\"streams\":%lu,\"finished\":%lu,\"gone\":%lu}", count.requests, count.streams, count.finished, count.gone));
            answer(c, &json, "200 OK");
            broken = send_out(c);
        } else {
            int models = !strncmp(c->in.at, "GET /v1/models ", 15);
            add_words(&json, models ? "{\"object\":\"list\",\"data\":[{\"id\":\"fake\",\"object\":\"model\"}]}" : "{\"error\":{\"message\":\"no such path\"}}");
            answer(c, &json, models ? "200 OK" : "404 Not Found");
            broken = send_out(c);
        }
        if (broken) return -1;
        drop(&c->in, head + body);
    }
    return 0;
}

static int take(struct conn *c) {
    reserve(&c->in, 65536);
    ssize_t n = recv(c->fd, c->in.at + c->in.len, c->in.cap - c->in.len - 1, 0);
    if (n <= 0) return n < 0 && errno == EAGAIN ? 0 : -1;
    c->in.len += (size_t)n;
    return serve(c);
}

static void welcome(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        no_delay(fd);
        struct conn *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->place = -1;
        watch(epoll_fd, EPOLL_CTL_ADD, fd, EPOLLIN, c);
    }
}

/* Every chunk that is due: one each, so that a stream without a pause leaves room for the others. */
static void speak(uint64_t now) {
    while (heap_len && heap[0]->due <= now) {
        struct conn *c = heap[0];
        unschedule(c);
        if (!c->waits) add_chunk(c); /* who does not read is not told more */
        if (c->chunks) {
            c->due = c->pace ? c->due + c->pace : now + 1;
            schedule(c);
        }
        if (send_out(c) || (!c->chunks && serve(c))) hang_up(c);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: engine PORT\n"), 2;
    prepare_process();
    int listener = listening(atoi(argv[1]));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(epoll_fd, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    struct epoll_event events[256];
    for (;;) {
        uint64_t now = now_ns();
        int n = wait_until(epoll_fd, events, 256, heap_len ? heap[0]->due : UINT64_MAX, now);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c) {
                welcome(listener);
                continue;
            }
            if ((events[i].events & EPOLLOUT && send_out(c)) || (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && take(c)))
                hang_up(c);
        }
        speak(now_ns());
    }
}
