// Compiled with -mavx2 (CMakeLists.txt); empty on other machines.
#if defined(__x86_64__)
#define TURNKEEP_DIGEST_KERNEL kDigestKernelAvx2
#include "core/digest_kernel.inc"
#endif
