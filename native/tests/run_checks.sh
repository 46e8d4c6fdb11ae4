#!/usr/bin/env bash
# Builds check.cpp and runs it in every way that this machine has the tools for:
#
#     tests/run_checks.sh [PART...]      parts: plain addresses threads valgrind emulated arm; all of them by default;
#                                      or quick, which is the fast half of plain
#
# CMAKE_BUILD_PARALLEL_LEVEL limits the compilers that run at once. Exit code 1 if a part fails.
set -u

root=$(cd "$(dirname "$0")/.." && pwd)
builds=$(mktemp -d)
trap 'rm -rf "$builds"' EXIT
failed=0

# build NAME [cmake arguments]: makes $builds/NAME/check
build() {
  local name=$1
  shift
  [ -x "$builds/$name/check" ] && return
  if ! { cmake -S "$root" -B "$builds/$name" -DSWIFTFORMER_CHECK=ON "$@" && cmake --build "$builds/$name"; } \
    >"$builds/$name.log" 2>&1; then
    cat "$builds/$name.log"
    return 1
  fi
}

# expect CODE LABEL COMMAND...
expect() {
  local code=$1 label=$2 found
  shift 2
  echo "== $label"
  "$@"
  found=$?
  [ $found -eq "$code" ] && return
  echo "FAILED: $label: expected exit code $code, found $found"
  failed=1
}

has() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || { echo "== skipped: no $tool"; return 1; }
  done
}

sanitized() {
  local name=$1 flags=$2
  build "$name" -DCMAKE_BUILD_TYPE=Check "-DCMAKE_CXX_FLAGS=-O1 -g -fno-sanitize-recover=all $flags"
}

quick() {
  expect 0 "build" build plain
  expect 0 "quick check" "$builds/plain/check" --quick >"$builds/quick.log" || true
  grep -v " ok: expected" "$builds/quick.log"
}

plain() {
  expect 0 "build" build plain
  expect 0 "check" "$builds/plain/check"
}

addresses() {
  expect 0 "build with address and undefined-behaviour sanitizers" sanitized addresses -fsanitize=address,undefined
  expect 0 "addresses and undefined behaviour" "$builds/addresses/check" --quick
  expect 0 "the same at promised sizes" "$builds/addresses/check" --sizes promised
}

threads() {
  expect 0 "build with the thread sanitizer" sanitized threads -fsanitize=thread
  TSAN_OPTIONS=halt_on_error=1 expect 0 "threads" "$builds/threads/check" --quick
  TSAN_OPTIONS=halt_on_error=1 expect 0 "the same at promised sizes" "$builds/threads/check" --sizes promised
}

# It knows no AVX-512, and replaces only some of the check's own functions that allocate and free.
valgrind_() {
  has valgrind || return
  expect 0 "build" build plain
  local isa arguments
  for isa in plain $([ "$(uname -m)" = x86_64 ] && echo avx2); do
    for arguments in --quick "--quick --sizes promised"; do
      # shellcheck disable=SC2086
      expect 0 "valgrind, $isa, $arguments" valgrind --quiet --error-exitcode=9 --leak-check=full \
        --errors-for-leak-kinds=definite --fair-sched=yes --show-mismatched-frees=no "$builds/plain/check" $arguments \
        --isa "$isa"
    done
  done
}

emulated() {
  [ "$(uname -m)" = x86_64 ] || { echo "== skipped: not x86-64"; return; }
  has qemu-x86_64-static || return
  expect 0 "build" build plain
  local cpu
  for cpu in Haswell Nehalem; do
    expect 0 "$cpu" qemu-x86_64-static -cpu "$cpu" "$builds/plain/check" --quick --real
    expect 2 "$cpu, asked for AVX-512" qemu-x86_64-static -cpu "$cpu" "$builds/plain/check" --isa avx512
  done 2> >(grep -v "TCG doesn't support" >&2)
}

arm() {
  has aarch64-linux-gnu-g++ qemu-aarch64-static || return
  expect 0 "build for arm64" build arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static
  expect 0 "arm64" qemu-aarch64-static "$builds/arm/check" --quick --real
  expect 0 "arm64 without dot products" qemu-aarch64-static -cpu cortex-a53 "$builds/arm/check" --quick --real
  expect 2 "arm64 without dot products, asked for them" qemu-aarch64-static -cpu cortex-a53 "$builds/arm/check" \
    --isa neon_dot
}

for part in "${@:-plain addresses threads valgrind emulated arm}"; do
  for name in $part; do
    case $name in
      valgrind) valgrind_ ;;
      quick | plain | addresses | threads | emulated | arm) "$name" ;;
      *) echo "expected plain, addresses, threads, valgrind, emulated or arm, found $name" >&2; exit 2 ;;
    esac
  done
done
[ $failed -eq 0 ] && echo "all passed"
exit $failed
