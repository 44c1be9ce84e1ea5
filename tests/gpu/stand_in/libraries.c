// The driver and the libraries of CUDA for a machine without a GPU: calls are counted, memory is the host's, no kernel runs.
//
// One file stands for libcuda, libcudart, libcublas and libcurand. It has the functions that are called; of one that it lacks, the
// executable says the name and ends. Everything is in order at once, so synchronising and events do nothing.
//
// STAND_IN_LOG         file to write: a line of JSON whenever something is copied to the host, and at the end, with all
//                      calls since the line before: {"event": "download", "bytes": 4, "calls": {"cuLaunchKernel": [1, 0]}}
//                      (how often, bytes); kernels are called kernel:NAME, and captured:NAME while a graph is recorded.
//                      A launch of a graph writes a line too: {"event": "graph", ...}
// STAND_IN_INIT        what cuInit answers: 0, or the number of an error
// STAND_IN_DRIVER      what cuDriverGetVersion answers: 13000 is 13.0
// STAND_IN_CAPABILITY  the GPU's compute capability: 90 is 9.0
// STAND_IN_MEMORY      the GPU's memory, bytes
// STAND_IN_FAIL        NAME:N:CODE: call number N of the function NAME answers CODE; unless that is 2 (no memory), all calls do from
//                      then on, as those of a driver do whose GPU has failed
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, CUBLAS_EXECUTION_FAILED = 13, ENTRIES = 4096, NAME = 128, HEADER = 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char name[NAME];
    long calls, bytes;
} entries[ENTRIES];
static int used;
static size_t taken;

static long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}

// What a call of a function answers by STAND_IN_FAIL.
static int failure(const char *function) {
    static int failed;
    static long calls;
    const char *plan = getenv("STAND_IN_FAIL"), *number = plan ? strchr(plan, ':') : NULL;
    // cuBLAS has numbers of its own, and CURAND is asked for nothing here.
    if (failed && !strncmp(function, "cublas", 6)) return CUBLAS_EXECUTION_FAILED;
    if (!number || failed) return strncmp(function, "curand", 6) ? failed : SUCCESS;
    size_t length = (size_t)(number - plan);
    if (strlen(function) != length || strncmp(plan, function, length) || ++calls != atol(number + 1)) return SUCCESS;
    int code = atoi(strchr(number + 1, ':') + 1);
    if (code != OUT_OF_MEMORY) failed = code;
    return code;
}

// Counts a call of `function` as `kind` and `name`. Linear: there are some dozens of names.
static int count_as(const char *function, const char *kind, const char *name, long bytes) {
    char full[NAME];
    snprintf(full, sizeof full, "%s%s", kind, name);
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < used && strcmp(entries[i].name, full)) i++;
    if (i == ENTRIES) abort();
    if (i == used) strcpy(entries[used++].name, full);
    entries[i].calls++;
    entries[i].bytes += bytes;
    int answer = failure(function);
    pthread_mutex_unlock(&lock);
    return answer;
}

static int count(const char *kind, const char *name, long bytes) { return count_as(name, kind, name, bytes); }

// Writes what has been counted, and begins anew.
static void write_line(const char *event, size_t bytes) {
    static FILE *out;
    pthread_mutex_lock(&lock);
    const char *path = getenv("STAND_IN_LOG");
    if (path && !out) out = fopen(path, "w");
    if (out) {
        const char *between = "";
        fprintf(out, "{\"event\": \"%s\", \"bytes\": %zu, \"calls\": {", event, bytes);
        for (int i = 0; i < used; i++) {
            if (!entries[i].calls) continue;
            fprintf(out, "%s\"%s\": [%ld, %ld]", between, entries[i].name, entries[i].calls, entries[i].bytes);
            between = ", ";
        }
        fprintf(out, "}}\n");
        fflush(out);
    }
    for (int i = 0; i < used; i++) entries[i].calls = entries[i].bytes = 0;
    pthread_mutex_unlock(&lock);
}

static void __attribute__((destructor)) end(void) { write_line("end", 0); }

#define COUNT(bytes) count("", __func__, (long)(bytes))
// A function that does nothing and succeeds.
#define DOES_NOTHING(name) \
    int name(void) { return COUNT(0); }
// A function that makes something which is only passed on: its first argument is where to put it.
#define MAKES(name)              \
    int name(void **made) {      \
        *made = (void *)#name;   \
        return COUNT(0);         \
    }

// The device

int cuInit(unsigned flags) {
    COUNT(flags);
    return (int)setting("STAND_IN_INIT", SUCCESS);
}

int cuDriverGetVersion(int *version) {
    *version = (int)setting("STAND_IN_DRIVER", 13000);
    return COUNT(0);
}

int cuGetErrorString(int code, const char **text) {
    static char told[32];
    snprintf(told, sizeof told, "error %d", code);
    *text = told;
    return SUCCESS;
}

int cuDeviceGetCount(int *devices) {
    *devices = 1;
    return COUNT(0);
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return COUNT(0);
}

int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, (size_t)length, "stand-in %d", device);
    return COUNT(0);
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    long capability = setting("STAND_IN_CAPABILITY", 90);
    switch (attribute) {
    case 16: *value = 132; break;  // multiprocessors
    case 75: *value = (int)(capability / 10); break;
    case 76: *value = (int)(capability % 10); break;
    default: *value = 1;
    }
    return COUNT(0);
}

MAKES(cuDevicePrimaryCtxRetain)
DOES_NOTHING(cuDevicePrimaryCtxRelease_v2)

static __thread void *current;

// What a thread's context is a driver says whatever has become of the GPU.
int cuCtxGetCurrent(void **context) {
    *context = current;
    COUNT(0);
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    current = context;
    COUNT(0);
    return SUCCESS;
}

DOES_NOTHING(cuCtxSynchronize)
MAKES(cuStreamCreate)
DOES_NOTHING(cuStreamDestroy_v2)
DOES_NOTHING(cuStreamSynchronize)
DOES_NOTHING(cuStreamWaitEvent)
MAKES(cuEventCreate)
DOES_NOTHING(cuEventRecord)
DOES_NOTHING(cuEventSynchronize)
DOES_NOTHING(cuEventDestroy_v2)

// Memory: a block knows its size, which stands in front of it.

static int allocate(uint64_t *at, size_t bytes) {
    size_t all = (size_t)setting("STAND_IN_MEMORY", 80L << 30);
    pthread_mutex_lock(&lock);
    int fits = bytes <= all - taken;
    if (fits) taken += bytes;
    pthread_mutex_unlock(&lock);
    if (!fits) return OUT_OF_MEMORY;
    char *block = calloc(1, bytes + HEADER);
    if (!block) return OUT_OF_MEMORY;
    memcpy(block, &bytes, sizeof bytes);
    *at = (uint64_t)(block + HEADER);
    return SUCCESS;
}

static void release(uint64_t at) {
    if (!at) return;
    char *block = (char *)at - HEADER;
    size_t bytes;
    memcpy(&bytes, block, sizeof bytes);
    pthread_mutex_lock(&lock);
    taken -= bytes;
    pthread_mutex_unlock(&lock);
    free(block);
}

int cuMemGetInfo_v2(size_t *available, size_t *all) {
    *all = (size_t)setting("STAND_IN_MEMORY", 80L << 30);
    *available = *all - taken;
    return COUNT(0);
}

int cuMemAllocAsync(uint64_t *at, size_t bytes, void *stream) {
    (void)stream;
    int failed = COUNT(bytes);
    return failed ? failed : allocate(at, bytes);
}

int cuMemAlloc_v2(uint64_t *at, size_t bytes) {
    int failed = COUNT(bytes);
    return failed ? failed : allocate(at, bytes);
}

int cuMemFreeAsync(uint64_t at, void *stream) {
    (void)stream;
    release(at);
    return COUNT(0);
}

int cuMemFree_v2(uint64_t at) {
    release(at);
    return COUNT(0);
}

int cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
    (void)flags;
    int failed = COUNT(bytes);
    *at = failed ? NULL : calloc(1, bytes);
    return failed || *at ? failed : OUT_OF_MEMORY;
}

int cuMemFreeHost(void *at) {
    free(at);
    return COUNT(0);
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    memcpy((void *)to, from, bytes);
    return COUNT(bytes);
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    (void)stream;
    memmove((void *)to, (void *)from, bytes);
    return COUNT(bytes);
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    (void)stream;
    int failed = COUNT(bytes);
    if (failed) return failed;
    memcpy(to, (void *)from, bytes);
    write_line("download", bytes);
    return SUCCESS;
}

int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void *stream) {
    (void)stream;
    memset((void *)at, value, bytes);
    return COUNT(bytes);
}

// Kernels: a function is its name.

MAKES(cuModuleLoadData)
DOES_NOTHING(cuModuleUnload)

int cuModuleGetFunction(void **function, void *module, const char *name) {
    static char *names[ENTRIES];
    (void)module;
    COUNT(0);
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < ENTRIES && names[i] && strcmp(names[i], name)) i++;
    if (i == ENTRIES) abort();
    if (!names[i]) names[i] = strdup(name);
    *function = names[i];
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

static int capturing;

// Of the kernels only this one leaves something behind that the host waits for: how many tokens have been chosen, in the first
// word of its argument `status` (kernels/output.cu).
static uint32_t *chosen;
enum { STATUS = 8 };

int cuLaunchKernel(const char *function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned shared, void *stream, void **arguments) {
    (void)x, (void)y, (void)z, (void)block_x, (void)block_y, (void)block_z, (void)shared, (void)stream;
    if (capturing && !strcmp(function, "choose")) chosen = *(uint32_t **)arguments[STATUS];
    return count_as(__func__, capturing ? "captured:" : "kernel:", function, 0);
}

// CUlaunchConfig begins so.
struct launch_config {
    unsigned x, y, z, block_x, block_y, block_z, shared;
    void *stream;
};

int cuLaunchKernelEx(const struct launch_config *to, const char *function, void **arguments, void **extra) {
    (void)extra;
    return cuLaunchKernel(function, to->x, to->y, to->z, to->block_x, to->block_y, to->block_z, to->shared, to->stream, arguments);
}

DOES_NOTHING(cuFuncSetAttribute)

// Graphs: what is captured is counted as such, what is launched as one call.

int cuStreamBeginCapture_v2(void *stream, int mode) {
    (void)stream, (void)mode;
    capturing = 1;
    return COUNT(0);
}

int cuStreamEndCapture(void *stream, void **graph) {
    (void)stream;
    capturing = 0;
    *graph = (void *)"graph";
    return COUNT(0);
}

MAKES(cuGraphInstantiateWithFlags)
DOES_NOTHING(cuGraphDestroy)
DOES_NOTHING(cuGraphExecDestroy)

int cuGraphLaunch(void *graph, void *stream) {
    (void)graph, (void)stream;
    int failed = COUNT(0);
    if (failed) return failed;
    if (chosen) ++*chosen;
    write_line("graph", 0);
    return SUCCESS;
}

// What nvcc compiles for the host: the stand-in for nvcc lets its functions launch a kernel of their own name.

void **__cudaRegisterFatBinary(void *code) {
    static void *handle;
    (void)code;
    COUNT(0);
    return &handle;
}

int __cudaLaunchKernel(const char *function) { return count("kernel:", function, 0); }

// The libraries of mathematics

MAKES(cublasCreate_v2)
DOES_NOTHING(cublasDestroy_v2)
DOES_NOTHING(cublasSetStream_v2)
MAKES(curandCreateGenerator)
DOES_NOTHING(curandDestroyGenerator)
DOES_NOTHING(curandGenerateUniform)
DOES_NOTHING(curandGenerateUniformDouble)
DOES_NOTHING(curandSetStream)
DOES_NOTHING(curandSetPseudoRandomGeneratorSeed)

int cublasGemmStridedBatchedEx(void) { return count("kernel:", __func__, 0); }
int cublasGemmEx(void) { return count("kernel:", __func__, 0); }
