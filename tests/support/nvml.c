/* A stand-in for libnvidia-ml.so.1: one H100 that does as the file named by NVML_CONTROL says:
   nothing (it is well), "hang", "lost" or "reload". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, NOT_SUPPORTED = 3, LOST = 15 };

typedef struct { unsigned long long total, available, used; } memory_t;
typedef struct { unsigned gpu, memory; } utilization_t;

static int opened;

static int state(void) {
    char word[16] = "";
    FILE *file = fopen(getenv("NVML_CONTROL"), "r");
    if (file) {
        if (fscanf(file, "%15s", word) != 1) word[0] = 0;
        fclose(file);
    }
    if (!strcmp(word, "hang")) for (;;) pause();
    if (!strcmp(word, "reload")) opened = 0;
    if (!opened) return UNINITIALIZED;
    return strcmp(word, "lost") ? OK : LOST;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; opened = 1; return OK; }
int nvmlShutdown(void) { opened = 0; return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 1;
    return opened ? OK : UNINITIALIZED;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = &opened;
    return index ? NOT_SUPPORTED : state();
}
int nvmlDeviceGetName(void *device, char *name, unsigned size) {
    (void)device;
    snprintf(name, size, "NVIDIA H100 80GB HBM3");
    return OK;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size) {
    (void)device;
    snprintf(uuid, size, "GPU-4d1e2c3a-8a6b-5f0e-9c57-2f6f3c1b7a90");
    return OK;
}
int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    (void)device;
    memory->total = 85520809984ULL;
    memory->used = 44163923968ULL;
    memory->available = memory->total - memory->used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *device, utilization_t *rates) {
    (void)device;
    rates->gpu = 37;
    rates->memory = 12;
    return OK;
}
int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius) {
    (void)device;
    *celsius = 61;
    return sensor ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    (void)device;
    *milliwatts = 310244;
    return OK;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    (void)device; (void)current; (void)pending;
    return NOT_SUPPORTED;
}
/* nvmlDeviceGetEnforcedPowerLimit is missing, as a function is in a driver that is too old. */
