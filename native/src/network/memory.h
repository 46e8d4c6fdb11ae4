// Memory at addresses that are multiples of a cache line, set to zero.

#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

namespace swiftformer {

template <class Value>
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t size) : size_(size) {
    if (size == 0) return;
    values_ = static_cast<Value*>(::operator new(size * sizeof(Value), std::align_val_t(64)));
    std::memset(values_, 0, size * sizeof(Value));
  }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Memory() {
    if (values_) ::operator delete(values_, std::align_val_t(64));
  }

  Value* get() { return values_; }
  const Value* get() const { return values_; }
  Value& operator[](size_t place) { return values_[place]; }
  size_t size() const { return size_; }

  // What is read of it was written before: a check, in which it is NaN and not zero, tells where that is not so.
  void grow(size_t size) {
    if (size <= size_) return;
    *this = Memory(size);
#if defined(SWIFTFORMER_CHECK)
    std::memset(values_, 0xff, size * sizeof(Value));
#endif
  }
  void grow_in_zeros(size_t size) {
    if (size > size_) *this = Memory(size);
  }

 private:
  void swap(Memory& other) {
    std::swap(values_, other.values_);
    std::swap(size_, other.size_);
  }

  Value* values_ = nullptr;
  size_t size_ = 0;
};

}  // namespace swiftformer
