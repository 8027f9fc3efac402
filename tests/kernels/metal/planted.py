"""Errors for the checks to find: small edits of this project's kernels that Metal refuses, or that break its limits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from draftmill.kernels.fused import add_norm
from draftmill.kernels.products import quantized_matmul

NORM = add_norm.SOURCE
DELTA = NORM.parents[1] / "recurrent" / "gated_delta.metal"
MATRICES = quantized_matmul.SOURCE, "quantized_matmul_simdgroup"


class Planted(NamedTuple):
    """An edit of a kernel's file, and a pattern of what must be said about it; the kernel, if its name is another."""

    found: str
    old: str
    new: str
    path: Path = NORM
    kernel: str = ""


def statement(found: str, text: str) -> Planted:
    """One more statement in a kernel."""
    old = "  float squares = 0.0f;\n"
    return Planted(found, old, f"{old}  {text}\n")


def helper(found: str, text: str) -> Planted:
    """One more function or variable above a kernel."""
    old = "METAL_FUNC float dot4("
    return Planted(found, old, f"{text}\n{old}", DELTA)


SUM = "sum[begin + four * 4] = T(held[i].x);"

PLANTED = {
    # Address spaces.
    "a constant buffer as a device one": statement("cannot initialize", "const device T* row = x + begin;"),
    "threadgroup memory as a thread's": statement("cannot initialize", "thread float* p = parts;"),
    "a thread's variable as threadgroup memory": statement("cannot initialize", "threadgroup float* p = &squares;"),
    "a cast to another space": statement("mismatching address spaces", "squares = ((thread float*)parts)[0];"),
    "one of two buffers": statement("incompatible operand types", "squares = float((me > 3 ? x : weight)[0]);"),
    "a pointer into one of two spaces": statement(
        "any address space|incompatible", "auto p = me > 3 ? (const threadgroup float*)parts : epsilon;"
    ),
    "a pointer without a space": statement("without an address space", "float* p = &squares;"),
    "a second pointer without a space": statement(
        "without an address space|any address space", "float a = squares, *p = &a;"
    ),
    "a cast without a space": statement("without an address space", "squares = *(float*)&squares;"),
    "a pointer type without a space": statement("without an address space", "using P = const float*;"),
    "a helper's reference without a space": helper(
        "without an address space", "METAL_FUNC void twice(float& x) {\n  x *= 2.0f;\n}"
    ),
    "a pointer without a space in a helper of one line": helper(
        "without an address space", "METAL_FUNC float first(const float* x) { return x[0]; }"
    ),
    "a template's pointer without a space": helper(
        "without an address space", "template <typename P>\nMETAL_FUNC float first(const P* x) { return float(x[0]); }"
    ),
    "a helper's array without a space": helper(
        "without an address space", "METAL_FUNC float first(float x[4]) { return x[0]; }"
    ),
    "a helper that returns a pointer without a space": helper(
        "without an address space", "template <typename P>\nMETAL_FUNC P* same(device P* x) { return x; }"
    ),
    "threadgroup memory in a helper": helper(
        "local address space", "METAL_FUNC float none() {\n  threadgroup float t[2];\n  return 0.0f;\n}"
    ),
    "threadgroup memory for a helper": helper(
        "CUDA has no word", "METAL_FUNC float first(threadgroup float* x) { return x[0]; }"
    ),
    "threadgroup memory in a block": statement(
        "outermost scope", "if (me > 3) { threadgroup float t[2]; t[0] = 0.0f; }"
    ),
    "threadgroup memory with a value": statement(
        "cannot have an initializer", "threadgroup float t[2] = {0.0f, 0.0f};"
    ),
    "a constant of the program without a space": helper("is `constant`", "constexpr int FOUR = 4;"),
    "a variable of the program": helper("is `constant`", "int counter = 0;"),
    "a word of OpenCL for a space": statement("poisoned", "const global float* p = epsilon;"),
    # What may be written.
    "a write to an input": Planted("not assignable", SUM, f"{SUM} x[begin] = T(0.0f);"),
    "a write to a constant": statement("not assignable|cannot assign", "me = 3;"),
    "a pointer that forgets const": statement("cannot initialize", "device T* row = x;"),
    "a cast that takes const away": statement("drops const", "((device float*)epsilon)[0] = 0.0f;"),
    "the same, named": statement("poisoned", "const_cast<device float*>(epsilon)[0] = 0.0f;"),
    "a helper that takes const away": helper(
        "drops const", "METAL_FUNC device float* written(const device float* x) { return (device float*)x; }"
    ),
    "what may be written, of a constant buffer": statement("no matching function", "writable<T>(x)[0] = T(0.0f);"),
    # Types.
    "a double": statement("poisoned", "double wide = 3.0f;"),
    "a literal of a double": Planted("single precision", "float squares = 0.0f;", "float squares = 0.5;"),
    "a long long": statement("long long", "long long far = 3;"),
    "a bfloat from a float": Planted("incompatible type", SUM, SUM.replace("T(held[i].x)", "held[i].x")),
    "a float from a bfloat": statement("cannot initialize", "const float a = x[begin];"),
    "a sum of bfloats": statement("invalid operands", "const float a = float(x[begin] + y[begin]);"),
    "min of a long and an int": Planted("ambiguous", "min(query + t + 1,", "min(token + 1,", DELTA),
    "a lanes' sum of longs": statement("ambiguous", "squares = float(simd_sum(begin));"),
    "a fifth element": statement("exceeds type|invalid length", "float4 a = 0.0f; squares = a.s4;"),
    "an array of a length known only when it runs": Planted(
        "not a constant expression", "  float4 s[FOURS];", "  float more[count];\n  float4 s[FOURS];", DELTA
    ),
    "a matrix of 8 by 4": Planted(
        "8 by 8", "simdgroup_matrix<U, 8, 8> own;", "simdgroup_matrix<U, 8, 4> own;", *MATRICES
    ),
    "a matrix of another type than its memory": Planted(
        "no matching function", "simdgroup_matrix<U, 8, 8> weights", "simdgroup_matrix<uint, 8, 8> weights", *MATRICES
    ),
    # Calls.
    "a pointer to a function": statement("pointers to functions|address of function", "float (*f)(float) = rsqrt;"),
    "a function as a value": Planted(
        "address of function", "float output = 0.0f;", "auto f = dot4;\n float output = 0.0f;", DELTA
    ),
    "a function for a template": helper(
        "calls itself|address of function",
        "template <typename F>\nMETAL_FUNC float called(F f) { return f(1.0f); }\n"
        "METAL_FUNC float one(float x) { return x; }\nMETAL_FUNC float two(float x) { return called(one); }",
    ),
    "recursion": Planted("calls itself", "return a.x * b.x +", "return dot4(b, a) +", DELTA),
    "recursion by two": helper(
        "calls itself",
        "METAL_FUNC int odd(int i);\nMETAL_FUNC int even(int i) { return i == 0 ? 1 : odd(i - 1); }\n"
        "METAL_FUNC int odd(int i) { return i == 0 ? 0 : even(i - 1); }",
    ),
    "any number of arguments": helper("variadic", "METAL_FUNC float first(float x, ...) { return x; }"),
    "a position in a helper": helper(
        "undeclared", "METAL_FUNC int mine() { return int(thread_position_in_threadgroup.x); }"
    ),
    "an attribute in a helper": helper(
        "MLX writes", "METAL_FUNC int mine(uint3 at [[thread_position_in_threadgroup]]) { return int(at.x); }"
    ),
    "a word that is not declared": statement("undeclared", "squares = rsqrtf(squares);"),
    "a word of CUDA": statement("undeclared", "squares = float(threadIdx.x);"),
    "std": statement("undeclared", "squares = std::max(squares, 1.0f);"),
    "printf": statement("undeclared", 'printf("%f", squares);'),
    "a helper with a name of MLX": helper(
        "has this name", "METAL_FUNC int ceildiv(int a, int b) { return (a + b - 1) / b; }"
    ),
    "a helper with a name of Metal's library": helper(
        "has this name", "METAL_FUNC float select(float a, float b, bool c) { return c ? b : a; }"
    ),
    # The language.
    "a reserved word as a name": statement("poisoned", "const int vertex = 3;"),
    "a macro of Metal as a name": statement("poisoned", "const float NAN = 0.0f;"),
    "a word of C++ as a name": statement("unqualified-id|expected", "const int xor = 3;"),
    "a static variable": statement("poisoned", "static int calls;"),
    "goto": statement("poisoned", "again: squares += 1.0f; if (squares < 3.0f) goto again;"),
    "a lambda": statement("no lambdas", "const auto twice = [](float a) { return 2.0f * a; };"),
    "a lambda that captures": statement("no lambdas", "squares = [me] { return float(me); }();"),
    "throw": statement("poisoned", "if (me > 3) throw 3;"),
    "try": statement("poisoned", "try { squares = 1.0f; } catch (...) {}"),
    "new": statement("poisoned", "const auto p = new float;"),
    "a virtual function": helper("poisoned", "struct Any {\n  virtual void run();\n};"),
    "assembler": statement("poisoned", 'asm("nop");'),
    "if constexpr": statement("before C\\+\\+17", "if constexpr (EACH > 3) squares = 1.0f;"),
    "names for a struct's parts": statement(
        "before C\\+\\+17", "struct Two { int a, b; }; const Two two = {1, 2}; auto [a, b] = two;"
    ),
    "a missing semicolon": Planted("expected ';'", "float squares = 0.0f;", "float squares = 0.0f"),
    "another header": Planted(
        "MLX includes", "kernel void add_norm(", "#include <metal_atomic>\n\nkernel void add_norm("
    ),
    # Limits, and what MLX's launches rest on.
    "33 KB of threadgroup memory": Planted("bytes of threadgroup memory", "parts[THREADS / 32]", "parts[THREADS * 33]"),
    "33 KB in two arrays": statement("bytes of threadgroup memory", "threadgroup T t[4096], u[12288];"),
    "a buffer's shape": statement("pass shapes", "squares = float(x_shape[0]);"),
    "a kernel that writes nothing": Planted(
        "writes nothing",
        "device T* sum,                // [N, SIZE]\n    device T* normed",
        "const device T* sum, const device T* normed",
    ),
    "a parameter without a space": Planted("a kernel takes", "const device float* epsilon", "const float* epsilon"),
    "matrices in the portable part": statement("not in the portable part", "simdgroup_matrix<float, 8, 8> a;"),
}
"""By what they are."""
