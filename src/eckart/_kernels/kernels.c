/* Loops that NumPy cannot leave early or would need copies for. Plain C, no Python.h: Python calls them through ctypes,
   which releases the GIL. Raise ABI here and in __init__.py whenever a function is added or a signature changes,
   also one of csr.c. */
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { ABI = 3, BLOCK = 4096 }; /* BLOCK values are looked at together, without a branch, so that the loop vectorises */

EXPORT int32_t eckart_abi(void) { return ABI; }

/* Return the index of the first value whose exponent bits are all ones (infinity or NaN), or -1. Integer arithmetic:
   no floating-point flag is raised, and no compiler option about NaN can remove the test. */
#define FIRST_NONFINITE(NAME, BITS)                                          \
    EXPORT int64_t NAME(const BITS *values, int64_t count, BITS exponent) {  \
        for (int64_t start = 0; start < count; start += BLOCK) {             \
            const int64_t stop = count - start < BLOCK ? count : start + BLOCK; \
            BITS found = 0;                                                  \
            for (int64_t i = start; i < stop; i++)                           \
                found |= (BITS)((values[i] & exponent) == exponent);         \
            if (found)                                                       \
                for (int64_t i = start; i < stop; i++)                       \
                    if ((values[i] & exponent) == exponent) return i;        \
        }                                                                    \
        return -1;                                                           \
    }

FIRST_NONFINITE(eckart_first_nonfinite_16, uint16_t)
FIRST_NONFINITE(eckart_first_nonfinite_32, uint32_t)
FIRST_NONFINITE(eckart_first_nonfinite_64, uint64_t)
