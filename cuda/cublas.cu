/* cublas: cuBLASLt, loaded at run time: the library is not linked, and a machine without it computes with
 * linear_dense's own kernels. What cuBLASLt's heuristic chose for a shape is kept, with the descriptors.
 * Never TF32 for float32, and no partial sums in less than float32. */
#include "cublas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pack.cuh"

#if defined(SPT_CUDA_ON_CPU)

/* A plain stand-in, where SPATILE_CUBLAS says so: the products that linear_dense hands over, one by one. */
static bool stands_in() {
  const char *named = getenv("SPATILE_CUBLAS");
  return named != NULL && strcmp(named, "stand-in") == 0;
}

bool spt_cublas_is_there(void) { return stands_in(); }

const char *spt_cublas_found(void) {
  return stands_in() ? "stand-in" : "cuBLAS is not used in the emulation";
}

void spt_cublas_free(struct spt_cublas *) {}

static float operand_at(const spt_cublas_operand *o, spt_dtype dtype, int64_t row, int64_t k) {
  int64_t at = o->turned ? k * o->stride + row : row * o->stride + k;
  return spt_load_any(static_cast<const char *>(o->data) + at * spt_storage_bytes(dtype), dtype);
}

static float number_at(const void *data, spt_dtype dtype, int64_t at) {
  return spt_load_any(static_cast<const char *>(data) + at * spt_storage_bytes(dtype), dtype);
}

static void multiply(const spt_cublas_product *p) {
  for (int64_t i = 0; i < p->m * p->n; i++) {
    int64_t row = i / p->n, col = i % p->n;
    float sum = 0.0f;
    for (int64_t k = 0; k < p->k; k++) {
      sum =
          fmaf(operand_at(&p->a, p->operands, row, k), operand_at(&p->b, p->operands, col, k), sum);
    }
    sum += p->bias != NULL ? number_at(p->bias, p->y_dtype, col) : 0.0f;
    sum += p->residual != NULL ? number_at(p->residual, p->y_dtype, row * p->residual_stride + col)
                               : 0.0f;
    if (p->gelu_tanh) {
      sum = 0.5f * sum * (1.0f + tanhf(0.79788456080286536f * (sum + 0.044715f * sum * sum * sum)));
    }
    int64_t at = (row * p->y_stride + col) * spt_storage_bytes(p->y_dtype);
    spt_store_any(static_cast<char *>(p->y) + at, p->y_dtype, sum);
  }
}

spt_status spt_cublas_multiply(spt_cuda_queue *queue, const char *op, const spt_cublas_product *p,
                               bool *done, spt_error *err) {
  *done = stands_in();
  if (*done) {
    spt_cublas_product product = *p;
    SPT_CUDA_TRY(op, "multiplying",
                 spt_emulated_enqueue(queue->stream, [product] { multiply(&product); }));
  }
  return SPT_OK;
}

#elif !__has_include(<cublasLt.h>)

bool spt_cublas_is_there(void) { return false; }
const char *spt_cublas_found(void) {
  return "the CUDA backend was built without cublasLt.h (pip install nvidia-cublas)";
}
void spt_cublas_free(struct spt_cublas *) {}
spt_status spt_cublas_multiply(spt_cuda_queue *, const char *, const spt_cublas_product *,
                               bool *done, spt_error *) {
  *done = false;
  return SPT_OK;
}

#else

#include <cublasLt.h>

/* ---- the library ------------------------------------------------------------------------------- */

/* The functions in use, each by its own prototype. */
#define FUNCTIONS(f)                  \
  f(cublasLtCreate);                  \
  f(cublasLtDestroy);                 \
  f(cublasLtMatmul);                  \
  f(cublasLtMatmulAlgoGetHeuristic);  \
  f(cublasLtMatmulDescCreate);        \
  f(cublasLtMatmulDescDestroy);       \
  f(cublasLtMatmulDescSetAttribute);  \
  f(cublasLtMatrixLayoutCreate);      \
  f(cublasLtMatrixLayoutDestroy);     \
  f(cublasLtMatmulPreferenceCreate);  \
  f(cublasLtMatmulPreferenceDestroy); \
  f(cublasLtMatmulPreferenceSetAttribute)

static struct library {
  void *handle;
  char found[1024]; /* the file, or why there is none */
#define MEMBER(name) decltype(&::name) name
  FUNCTIONS(MEMBER);
#undef MEMBER
} lib;
static pthread_once_t loaded_once = PTHREAD_ONCE_INIT;

/* Adds what failed to what is said if all fail. */
static void note_failure(const char *what) {
  size_t used = strlen(lib.found);
  snprintf(lib.found + used, sizeof lib.found - used, "%s%s", used > 0 ? "; " : "", what);
}

static bool open_file(const char *file) {
  void *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (handle == NULL) {
    note_failure(dlerror());
    return false;
  }
#define FIND(name)                                                       \
  lib.name = reinterpret_cast<decltype(lib.name)>(dlsym(handle, #name)); \
  if (lib.name == NULL) {                                                \
    note_failure(dlerror());                                             \
    dlclose(handle);                                                     \
    return false;                                                        \
  }
  FUNCTIONS(FIND);
#undef FIND
  lib.handle = handle;
  snprintf(lib.found, sizeof lib.found, "%s", file);
  return true;
}

/* site-packages has spatile and nvidia side by side. */
static bool open_beside(const char *part) {
  Dl_info here;
  char file[4096];
  if (dladdr(reinterpret_cast<void *>(&spt_cublas_found), &here) == 0 || here.dli_fname == NULL) {
    return false;
  }
  const char *slash = strrchr(here.dli_fname, '/');
  int folder = slash != NULL ? (int)(slash - here.dli_fname) : 0;
  int length = snprintf(file, sizeof file, "%.*s/../nvidia/%s", folder, here.dli_fname, part);
  return length < (int)sizeof file && open_file(file);
}

static void load() {
  const char *named = getenv("SPATILE_CUBLAS");
  if (named != NULL && named[0] != 0) {
    if (strcmp(named, "none") == 0) {
      note_failure("SPATILE_CUBLAS is none");
    } else {
      open_file(named);
    }
    return;
  }
  if (!open_file("libcublasLt.so.13") && !open_beside("cu13/lib/libcublasLt.so.13") &&
      !open_file("libcublasLt.so.12")) {
    open_beside("cublas/lib/libcublasLt.so.12");
  }
}

bool spt_cublas_is_there(void) {
  pthread_once(&loaded_once, load);
  return lib.handle != NULL;
}

const char *spt_cublas_found(void) {
  pthread_once(&loaded_once, load);
  return lib.found;
}

/* ---- a queue's --------------------------------------------------------------------------------- */

/* What a plan depends on; compared as bytes. */
struct plan_key {
  int64_t m, n, k, a_stride, b_stride, y_stride, residual_stride;
  int32_t operands, y_dtype, a_turned, b_turned, bias, residual, gelu_tanh;
  int32_t a_alignment, b_alignment, y_alignment, residual_alignment, unused;
};

struct plan {
  plan_key key;
  bool used, possible;
  cublasLtMatmulDesc_t product;
  cublasLtMatrixLayout_t a, b, y, residual;
  cublasLtMatmulHeuristicResult_t chosen;
};

enum { PLANS = 128 };

struct spt_cublas {
  cublasLtHandle_t handle;
  pthread_mutex_t lock; /* of all below, and of the descriptors while a product is enqueued */
  plan plans[PLANS];
  int next; /* the place that is given up next */
};

static pthread_mutex_t creating = PTHREAD_MUTEX_INITIALIZER;

static spt_status fail(spt_error *err, const char *op, const char *doing, cublasStatus_t code) {
  return spt_fail(err, SPT_DEVICE_ERROR, "%s: cuBLAS, %s: status %d", op, doing, (int)code);
}

#define CUBLAS_TRY(doing, call)           \
  do {                                    \
    cublasStatus_t code_ = (call);        \
    if (code_ != CUBLAS_STATUS_SUCCESS) { \
      return fail(err, op, doing, code_); \
    }                                     \
  } while (0)

static spt_status queue_cublas(spt_cuda_queue *queue, const char *op, spt_cublas **found,
                               spt_error *err) {
  spt_status status = SPT_OK;
  pthread_mutex_lock(&creating);
  if (queue->cublas == NULL) {
    spt_cublas *made = static_cast<spt_cublas *>(calloc(1, sizeof *made));
    cublasStatus_t code = CUBLAS_STATUS_ALLOC_FAILED;
    if (made != NULL) {
      pthread_mutex_init(&made->lock, NULL);
      code = lib.cublasLtCreate(&made->handle);
    }
    if (code == CUBLAS_STATUS_SUCCESS) {
      queue->cublas = made;
    } else {
      free(made);
      status = fail(err, op, "starting", code);
    }
  }
  *found = queue->cublas;
  pthread_mutex_unlock(&creating);
  return status;
}

static void clear_plan(plan *p) {
  cublasLtMatrixLayout_t layouts[] = {p->a, p->b, p->y, p->residual};
  for (cublasLtMatrixLayout_t layout : layouts) {
    if (layout != NULL) {
      lib.cublasLtMatrixLayoutDestroy(layout);
    }
  }
  if (p->product != NULL) {
    lib.cublasLtMatmulDescDestroy(p->product);
  }
  *p = plan();
}

void spt_cublas_free(struct spt_cublas *cublas) {
  if (cublas == NULL) {
    return;
  }
  for (plan &p : cublas->plans) {
    clear_plan(&p);
  }
  lib.cublasLtDestroy(cublas->handle);
  pthread_mutex_destroy(&cublas->lock);
  free(cublas);
}

/* ---- plans ------------------------------------------------------------------------------------- */

static cudaDataType_t type_of(int dtype) {
  return dtype == SPT_F32 ? CUDA_R_32F : dtype == SPT_F16 ? CUDA_R_16F : CUDA_R_16BF;
}

static int32_t alignment_of(const void *data) {
  uintptr_t address = (uintptr_t)data | 256;
  return (int32_t)(address & (~address + 1));
}

static plan_key key_of(const spt_cublas_product *p) {
  plan_key key;
  memset(&key, 0, sizeof key);
  key.m = p->m;
  key.n = p->n;
  key.k = p->k;
  key.a_stride = p->a.stride;
  key.b_stride = p->b.stride;
  key.y_stride = p->y_stride;
  key.residual_stride = p->residual != NULL ? p->residual_stride : p->y_stride;
  key.operands = p->operands;
  key.y_dtype = p->y_dtype;
  key.a_turned = p->a.turned;
  key.b_turned = p->b.turned;
  key.bias = p->bias != NULL;
  key.residual = p->residual != NULL;
  key.gelu_tanh = p->gelu_tanh;
  key.a_alignment = alignment_of(p->a.data);
  key.b_alignment = alignment_of(p->b.data);
  key.y_alignment = alignment_of(p->y);
  key.residual_alignment = alignment_of(p->residual != NULL ? p->residual : p->y);
  return key;
}

/* cuBLAS counts by columns: our rows are its columns. So yᵀ (n, m) = b · aᵀ, and b is its A. */
static cublasStatus_t describe(plan *p) {
  const plan_key *k = &p->key;
  cudaDataType_t operands = type_of(k->operands), y = type_of(k->y_dtype);
  cublasOperation_t turn_b = k->b_turned ? CUBLAS_OP_N : CUBLAS_OP_T;
  cublasOperation_t turn_a = k->a_turned ? CUBLAS_OP_T : CUBLAS_OP_N;
  int epilogue =
      (k->bias ? CUBLASLT_EPILOGUE_BIAS : 0) | (k->gelu_tanh ? CUBLASLT_EPILOGUE_GELU : 0);
  cublasLtEpilogue_t wanted =
      epilogue != 0 ? (cublasLtEpilogue_t)epilogue : CUBLASLT_EPILOGUE_DEFAULT;
  cublasStatus_t code = lib.cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
#define THEN(call)                     \
  if (code == CUBLAS_STATUS_SUCCESS) { \
    code = (call);                     \
  }
#define SET(attribute, value) \
  THEN(lib.cublasLtMatmulDescSetAttribute(p->product, attribute, &(value), sizeof(value)))
  SET(CUBLASLT_MATMUL_DESC_TRANSA, turn_b);
  SET(CUBLASLT_MATMUL_DESC_TRANSB, turn_a);
  SET(CUBLASLT_MATMUL_DESC_EPILOGUE, wanted);
#undef SET
  uint64_t m = (uint64_t)k->m, n = (uint64_t)k->n, depth = (uint64_t)k->k;
  THEN(lib.cublasLtMatrixLayoutCreate(&p->b, operands, k->b_turned ? n : depth,
                                      k->b_turned ? depth : n, k->b_stride));
  THEN(lib.cublasLtMatrixLayoutCreate(&p->a, operands, k->a_turned ? m : depth,
                                      k->a_turned ? depth : m, k->a_stride));
  THEN(lib.cublasLtMatrixLayoutCreate(&p->y, y, n, m, k->y_stride));
  THEN(lib.cublasLtMatrixLayoutCreate(&p->residual, y, n, m, k->residual_stride));
  return code;
}

/* Partial sums that are added up in another order each time, or in 16 bits, are ruled out. */
static cublasStatus_t choose(spt_cublas *cublas, plan *p, const void *bias, int capability) {
  cublasLtMatmulPreference_t preference;
  size_t workspace = capability >= 90 ? (size_t)32 << 20 : (size_t)4 << 20;
  uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  cublasStatus_t code = lib.cublasLtMatmulPreferenceCreate(&preference);
  if (code != CUBLAS_STATUS_SUCCESS) {
    return code;
  }
  uint32_t alignments[] = {(uint32_t)p->key.b_alignment, (uint32_t)p->key.a_alignment,
                           (uint32_t)p->key.residual_alignment, (uint32_t)p->key.y_alignment};
  const cublasLtMatmulPreferenceAttributes_t names[] = {
      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
#define SET(attribute, value) \
  THEN(lib.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &(value), sizeof(value)))
  SET(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
  SET(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
  for (int i = 0; i < 4; i++) {
    SET(names[i], alignments[i]);
  }
#undef SET
  if (p->key.bias) {
    THEN(lib.cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                            sizeof bias));
  }
  int found = 0;
  THEN(lib.cublasLtMatmulAlgoGetHeuristic(cublas->handle, p->product, p->b, p->a, p->residual, p->y,
                                          preference, 1, &p->chosen, &found));
  p->possible = code == CUBLAS_STATUS_SUCCESS && found > 0;
  lib.cublasLtMatmulPreferenceDestroy(preference);
  return code == CUBLAS_STATUS_NOT_SUPPORTED ? CUBLAS_STATUS_SUCCESS : code;
}

static spt_status find_plan(spt_cuda_queue *queue, spt_cublas *cublas, const char *op,
                            const spt_cublas_product *product, plan **found, spt_error *err) {
  plan_key key = key_of(product);
  for (plan &p : cublas->plans) {
    if (p.used && memcmp(&p.key, &key, sizeof key) == 0) {
      *found = &p;
      return SPT_OK;
    }
  }
  plan *p = &cublas->plans[cublas->next];
  cublas->next = (cublas->next + 1) % PLANS;
  clear_plan(p);
  p->key = key;
  CUBLAS_TRY("describing a product", describe(p));
  CUBLAS_TRY("choosing a kernel", choose(cublas, p, product->bias, queue->device->capability));
  p->used = true;
  *found = p;
  return SPT_OK;
}

static spt_status multiply_locked(spt_cuda_queue *queue, spt_cublas *cublas, const char *op,
                                  const spt_cublas_product *product, bool *done, spt_error *err) {
  spt_scratch scratch(queue, op);
  plan *p = NULL;
  SPT_TRY(find_plan(queue, cublas, op, product, &p, err));
  if (!p->possible) {
    return SPT_OK;
  }
  char *workspace = NULL;
  if (p->chosen.workspaceSize > 0) {
    SPT_TRY(scratch.take(&workspace, (int64_t)p->chosen.workspaceSize, err));
  }
  if (product->bias != NULL) {
    CUBLAS_TRY("naming the bias",
               lib.cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                  &product->bias, sizeof product->bias));
  }
  float one = 1.0f, scale = product->residual != NULL ? 1.0f : 0.0f;
  const void *residual = product->residual != NULL ? product->residual : product->y;
  CUBLAS_TRY("multiplying", lib.cublasLtMatmul(cublas->handle, p->product, &one, product->b.data,
                                               p->b, product->a.data, p->a, &scale, residual,
                                               p->residual, product->y, p->y, &p->chosen.algo,
                                               workspace, p->chosen.workspaceSize, queue->stream));
  *done = true;
  return SPT_OK;
}

spt_status spt_cublas_multiply(spt_cuda_queue *queue, const char *op,
                               const spt_cublas_product *product, bool *done, spt_error *err) {
  spt_cublas *cublas = NULL;
  *done = false;
  if (!spt_cublas_is_there()) {
    return SPT_OK;
  }
  SPT_TRY(queue_cublas(queue, op, &cublas, err));
  pthread_mutex_lock(&cublas->lock);
  spt_status status = multiply_locked(queue, cublas, op, product, done, err);
  pthread_mutex_unlock(&cublas->lock);
  return status;
}

#endif
