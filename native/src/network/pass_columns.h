// Products of all pixels whose columns the threads share: more of pass.h.

#pragma once

#include "network/pass.h"

namespace swiftformer {

// Calls task(matrix, first column) for a part of a matrix for each thread, in whole panels (of tiles in pairs): the
// last four vectors may be two panels of two. Not with levels. The operand's filling is to be cleared before.
template <class Task>
void Network::Pass::each_columns(const Product& product, const Task& task) {
  const Matrix& matrix = product.matrix;
  const int widest = product.kernels->widest, columns = matrix.columns, panel = (widest > 1 ? widest : 2) * lanes;
  const int panels = (columns + panel - 1) / panel, parts = std::min(panels, threads());
  const auto edge = [&](int part) {
    const int place = std::min(columns, panels * part / parts * panel);
    return place > 0 && columns - place == lanes && widest > 2 ? place - lanes : place;
  };
  each(parts, [&](int part, int) {
    const int begin = edge(part);
    Matrix some = matrix;
    some.used = some.depth;
    some.words += static_cast<size_t>(begin) * some.depth;
    some.bias += begin;
    some.columns = edge(part + 1) - begin;
    task(some, begin);
  });
}

inline Network::Pass::Rows Network::Pass::operand_of_all(const Product& product, int image, int first) const {
  const int stride = operand_stride(*product.kernels, channels);
  return {work.operand_of_all.get() + (static_cast<size_t>(image) * tokens() + first) * stride, stride};
}

// Not by products, as these are several at once.
inline void Network::Pass::clear_filling(const Product& product, Rows operand, int rows) const {
  const Matrix& matrix = product.matrix;
  for (int r = 0; r < rows; ++r) {
    std::fill_n(operand.at + r * operand.stride + matrix.used, matrix.depth - matrix.used, 0u);
  }
}

inline void Network::Pass::multiply_columns(const Product& product, Rows operand, Then then, void* out, int out_stride,
                                            const float* residual) {
  clear_filling(product, operand, images() * tokens());
  each_columns(product, [&](const Matrix& some, int begin) {
    const int words = then == Then::gelu ? begin / kernels.values_per_word * kernels.parts : begin;
    product.kernels->product(some, operand.at, operand.stride, images() * tokens(), then,
                             static_cast<uint32_t*>(out) + words, out_stride, residual + begin, out_stride);
  });
}

// Of the operand of all pixels.
inline void Network::Pass::expand_and_project_columns(const Product& expand, const Product& project, float* out,
                                                      const float* residual) {
  const Rows hidden{work.hidden_of_all.get(), operand_stride(kernels, expand.outputs)};
  multiply_columns(expand, operand_of_all(expand, 0, 0), Then::gelu, hidden.at, hidden.stride * kernels.values_per_word,
                   out);
  multiply_columns(project, hidden, Then::add, out, filled(channels), residual);
}

inline void Network::Pass::branch_in_columns(const Branch& layer) {
  each_tile([&](int image, int first, int rows, int, int) {
    filter(layer, image, first, rows, operand_of_all(layer.expand, image, first));
  });
  expand_and_project_columns(layer.expand, layer.project, other, map);
}

}  // namespace swiftformer
