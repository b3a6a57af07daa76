#define TURNKEEP_DIGEST_KERNEL kDigestKernelBaseline
#include "core/digest_kernel.inc"
