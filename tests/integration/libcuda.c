/* A CUDA driver without GPUs, for tests: its answers come from the environment.
 *
 * STUB_DEVICES  how many devices there are; each has its number, from 1, in every octet of its UUID
 * STUB_CUINIT   what cuInit answers
 * STUB_HANG     cuInit never returns
 * STUB_CRASH    cuDeviceGetCount is a segmentation fault
 * STUB_FAULT    what cuCtxSynchronize answers after a kernel was launched
 * An empty CUDA_VISIBLE_DEVICES hides all, as the real one does.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int number(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

int cuInit(unsigned flags) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    while (getenv("STUB_HANG")) pause();
    if (visible && !*visible) return 100;
    return flags ? 1 : number("STUB_CUINIT");
}

int cuDeviceGetCount(int *count) {
    if (getenv("STUB_CRASH")) *(volatile int *)8 = 0;
    *count = number("STUB_DEVICES");
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal < number("STUB_DEVICES") ? 0 : 101;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = (size_t)(device + 1) << 30;
    return 0;
}

int cuDeviceGetUuid(char *octets, int device) {
    memset(octets, device + 1, 16);
    return 0;
}

int cuDeviceGetUuid_v2(char *octets, int device) { return cuDeviceGetUuid(octets, device); }

int cuDeviceGetName(char *text, int size, int device) {
    snprintf(text, size, "Stub %d", device);
    return 0;
}

int cuDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, size, "0000:%02X:00.0", device + 10);
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : device; /* compute capability 9.DEVICE */
    return 0;
}

int cuGetErrorString(int code, const char **text) {
    *text = code == 100 ? "no CUDA-capable device is detected" : NULL;
    return *text ? 0 : 1;
}

/* A context, a module of one kernel, and one launch of it: each call wants what the one before gave. */
static char context, module, kernel;
static void *current;
static const char *source;
static int launched;

int cuDevicePrimaryCtxRetain(void **given, int device) {
    *given = &context;
    return device < number("STUB_DEVICES") ? 0 : 101;
}

int cuCtxSetCurrent(void *given) {
    current = given;
    return given == &context ? 0 : 201;
}

int cuModuleLoadData(void **given, const void *image) {
    source = image;
    *given = &module;
    return current ? 0 : 201;
}

int cuModuleGetFunction(void **given, void *in, const char *name) {
    char entry[64];
    snprintf(entry, sizeof entry, ".visible .entry %s(", name);
    *given = &kernel;
    return in == &module && strstr(source, entry) ? 0 : 500;
}

int cuLaunchKernel(void *of, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared_bytes, void *stream, void **parameters,
                   void **extra) {
    if (of != &kernel || gx * gy * gz != 1 || bx * by * bz != 1) return 400;
    if (shared_bytes || stream || extra || *(uint64_t *)parameters[0]) return 1;
    launched = 1;
    return 0;
}

int cuCtxSynchronize(void) { return launched ? number("STUB_FAULT") : 0; }
