// The part of AscendC's kernel_operator.h that our kernels use, for kernels that run in the simulator.
//
// Names, overloads and units are those of the public headers; a call that is not here does not compile.
#ifndef SIM_KERNEL_OPERATOR_H
#define SIM_KERNEL_OPERATOR_H

#include "sim/copies.h"
#include "sim/launch_macros.h"
#include "sim/numbers.h"
#include "sim/queues.h"
#include "sim/sync.h"
#include "sim/tensors.h"
#include "sim/vector.h"
#include "sim/vector_cast.h"
#include "sim/vector_reduce.h"

#endif
