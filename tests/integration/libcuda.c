/* A CUDA driver without GPUs, for tests: its answers come from the environment.
 *
 * STUB_DEVICES  how many devices there are; each has its number, from 1, in every octet of its UUID
 * STUB_CUINIT   what cuInit answers
 * STUB_HANG     cuInit never returns
 * STUB_CRASH    cuDeviceGetCount is a segmentation fault
 * An empty CUDA_VISIBLE_DEVICES hides all, as the real one does.
 */
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
