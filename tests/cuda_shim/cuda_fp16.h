/* Half precision on the CPU: g++ has it. */
#pragma once
typedef _Float16 half;
typedef _Float16 __half;
