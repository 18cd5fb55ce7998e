/* Adds the number of seconds in the file CLOCK_SKEW_FILE to the wall clock that a process reads.
 *
 * Loaded with LD_PRELOAD. Monotonic clocks stay right. The file is mapped, so that a change takes
 * effect at once and a read costs nothing. libfaketime takes a lock at each read of any clock,
 * which makes a JVM about seven times slower.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile const long *skew;
static int (*read_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void prepare(void) {
    const char *path = getenv("CLOCK_SKEW_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *map = file < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) abort();
    read_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    skew = map;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    if (!read_clock) read_clock = dlsym(RTLD_NEXT, "clock_gettime");
    int result = read_clock(clock, at);
    if (skew && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += *skew;
    return result;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
