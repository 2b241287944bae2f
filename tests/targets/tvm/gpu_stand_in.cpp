/* In the place of NVIDIA's driver and of cuBLAS: memory is the host's, a product is computed as cuBLAS defines it (column by column), a
 * kernel does nothing but take its time, a graph is the list of what was captured. stand_in_log() says what was done. */
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

static std::string said;
static double clock_ms = 0, kernel_ms = 1, gemm_ms = 1;
static int refuses = 0;
static bool capturing = false;
static std::vector<std::function<void()>> captured;

static int issue(std::function<void()> work) {
    if (capturing) captured.push_back(work);
    else work();
    return 0;
}

extern "C" {
const char *stand_in_log() { return said.c_str(); }
void stand_in_begin(double kernel, double gemm, int status) { said.clear(), kernel_ms = kernel, gemm_ms = gemm, refuses = status; }

int cuInit(unsigned) { return 0; }
int cuGetErrorString(int, const char **text) { return *text = "refused", 0; }
int cuDeviceGetCount(int *n) { return *n = 1, 0; }
int cuDeviceGet(int *d, int) { return *d = 0, 0; }
int cuDevicePrimaryCtxRetain(void **c, int) { return *c = &said, 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxSetCurrent(void *) { return 0; }
int cuModuleLoadData(void **m, const void *) { return *m = &said, 0; }
int cuModuleUnload(void *) { return 0; }
int cuModuleGetFunction(void **f, void *, const char *) { return *f = &said, 0; }
int cuStreamCreate(void **s, unsigned) { return *s = &said, 0; }
int cuStreamDestroy_v2(void *) { return 0; }
int cuStreamSynchronize(void *) { return 0; }
int cuMemAlloc_v2(uint64_t *p, size_t n) { return *p = reinterpret_cast<uint64_t>(std::calloc(n, 1)), 0; }
int cuMemFree_v2(uint64_t p) { return std::free(reinterpret_cast<void *>(p)), 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t n) { return std::memcpy(reinterpret_cast<void *>(to), from, n), 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) { return std::memcpy(to, reinterpret_cast<void *>(from), n), 0; }
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **) {
    return issue([] { said += "kernel ", clock_ms += kernel_ms; });
}
int cuEventCreate(void **e, unsigned) { return *e = new double(0), 0; }
int cuEventRecord(void *e, void *) { return *static_cast<double *>(e) = clock_ms, 0; }
int cuEventSynchronize(void *) { return 0; }
int cuEventElapsedTime(float *ms, void *a, void *b) { return *ms = float(*static_cast<double *>(b) - *static_cast<double *>(a)), 0; }
int cuEventDestroy_v2(void *e) { return delete static_cast<double *>(e), 0; }
int cuStreamBeginCapture_v2(void *, int) { return said += "capture ", captured.clear(), capturing = true, 0; }
int cuStreamEndCapture(void *, void **g) { return said += "captured ", capturing = false, *g = &captured, 0; }
int cuGraphInstantiateWithFlags(void **made, void *g, unsigned long long) { return *made = g, 0; }
int cuGraphDestroy(void *) { return 0; }
int cuGraphExecDestroy(void *) { return 0; }
int cuGraphLaunch(void *g, void *) {
    for (auto &work : *static_cast<std::vector<std::function<void()>> *>(g)) work();
    return 0;
}

int cublasCreate_v2(void **h) { return *h = &said, refuses; }
int cublasDestroy_v2(void *) { return said += "destroyed ", 0; }
int cublasSetStream_v2(void *, void *) { return 0; }
int cublasSetWorkspace_v2(void *, void *memory, size_t n) { return memory ? std::memset(memory, 0, n), 0 : 7; }
int cublasGemmStridedBatchedEx(void *, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int ka, int lda, long long sa,
                               const float *b, int kb, int ldb, long long sb, const float *beta, float *c, int kc, int ldc, long long sc,
                               int batch, int compute, int) {
    if (ka || kb || kc || lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7; /* CUBLAS_STATUS_INVALID_VALUE */
    const float one = *alpha, zero = *beta;
    return issue([=] {
        said += "gemm" + std::to_string(compute) + " ", clock_ms += gemm_ms;
        for (int e = 0; e < batch; ++e)
            for (int j = 0; j < n; ++j)
                for (int i = 0; i < m; ++i) {
                    float sum = 0;
                    for (int t = 0; t < k; ++t) sum += a[e * sa + (ta ? t + i * lda : i + t * lda)] * b[e * sb + (tb ? j + t * ldb : t + j * ldb)];
                    float &to = c[e * sc + i + j * ldc];
                    to = one * sum + (zero ? zero * to : 0);
                }
    });
}
}
