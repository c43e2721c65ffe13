// Calls every op at odd sizes, for the sanitizers: each buffer has exactly its size, so a lane too many is an error.
// Results must be finite and bitwise equal for one and for three threads. Values are checked by tests/wet/ops_cpu.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

extern "C" void mindmoe_set_threads(int);
extern "C" int mindmoe_use_tiles(int);

namespace {

using Shape = std::vector<int64_t>;
std::mt19937 generator(1);

// A tensor in memory of its own, of exactly its size.
class Array {
 public:
  Array(Shape shape, const char *dtype, size_t bytes)
      : shape_(std::move(shape)),
        dtype_(dtype),
        bytes_(size() * bytes),
        data_(static_cast<char *>(std::malloc(bytes_))) {
    std::memset(data_.get(), 0x7f, bytes_);  // a value never written shows as a huge number
  }
  int64_t size() const {
    int64_t product = 1;
    for (int64_t dim : shape_) product *= dim;
    return product;
  }
  template <class T>
  T *as() const {
    return reinterpret_cast<T *>(data_.get());
  }
  bool finite() const {
    bool half = std::strcmp(dtype_, "bfloat16") == 0;
    if (!half && std::strcmp(dtype_, "float32") != 0) return true;
    for (int64_t i = 0; i < size(); ++i) {
      uint32_t bits = half ? uint32_t{as<uint16_t>()[i]} << 16 : as<uint32_t>()[i];
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      if (!std::isfinite(value) || std::abs(value) > 1e30f) return false;
    }
    return true;
  }
  std::vector<char> copy() const { return {data_.get(), data_.get() + bytes_}; }

  Shape shape_;
  const char *dtype_;

 private:
  struct Free {
    void operator()(char *data) const { std::free(data); }
  };
  size_t bytes_;
  std::unique_ptr<char, Free> data_;
};

using Arrays = std::vector<std::shared_ptr<Array>>;
using Op = int (*)(int, void **, int *, int64_t **, const char **, void *, void *);

std::shared_ptr<Array> empty(Shape shape, bool half = false) {
  return std::make_shared<Array>(std::move(shape), half ? "bfloat16" : "float32", half ? 2 : 4);
}
std::shared_ptr<Array> integers(Shape shape) { return std::make_shared<Array>(std::move(shape), "int32", 4); }
std::shared_ptr<Array> integers(Shape shape, int low, int high) {
  auto array = integers(std::move(shape));
  std::uniform_int_distribution<int> values(low, high);
  for (int64_t i = 0; i < array->size(); ++i) array->as<int32_t>()[i] = values(generator);
  return array;
}
std::shared_ptr<Array> random(Shape shape) {
  auto array = empty(std::move(shape));
  std::normal_distribution<float> values;
  for (int64_t i = 0; i < array->size(); ++i) array->as<float>()[i] = values(generator);
  return array;
}
std::shared_ptr<Array> settings(std::vector<double> values) {
  auto array = std::make_shared<Array>(Shape{static_cast<int64_t>(values.size())}, "float64", 8);
  std::memcpy(array->as<double>(), values.data(), values.size() * sizeof(double));
  return array;
}

void run(Op op, const Arrays &tensors) {
  std::vector<void *> data;
  std::vector<int> ranks;
  std::vector<int64_t *> shapes;
  std::vector<const char *> dtypes;
  for (const auto &tensor : tensors) {
    data.push_back(tensor->as<void>());
    ranks.push_back(static_cast<int>(tensor->shape_.size()));
    shapes.push_back(tensor->shape_.data());
    dtypes.push_back(tensor->dtype_);
  }
  if (op(static_cast<int>(tensors.size()), data.data(), ranks.data(), shapes.data(), dtypes.data(), nullptr, nullptr) != 0) std::exit(1);
}

// Inputs, then outputs. An op that updates inputs in place runs once only.
void check(const char *name, Op op, const Arrays &inputs, const Arrays &outputs, bool in_place = false) {
  Arrays all = inputs;
  all.insert(all.end(), outputs.begin(), outputs.end());
  std::vector<std::vector<char>> first;
  for (int threads : {1, 3}) {
    mindmoe_set_threads(threads);
    if (in_place && threads == 1) continue;
    run(op, all);
    for (size_t i = 0; i < outputs.size(); ++i) {
      bool equal = first.size() < outputs.size() || outputs[i]->copy() == first[i];
      if (!outputs[i]->finite() || !equal) {
        std::printf("%s: output %zu is %s\n", name, i, equal ? "not finite" : "not the same for 3 threads");
        std::exit(1);
      }
      if (first.size() < outputs.size()) first.push_back(outputs[i]->copy());
    }
  }
  std::printf("%s ok\n", name);
}

}  // namespace

#define OP(name) extern "C" int name(int, void **, int *, int64_t **, const char **, void *, void *);
OP(arrive)
OP(attention_cached)
OP(linear_forward)
OP(linear_backward)
OP(rms_norm_forward)
OP(rms_norm_backward)
OP(attention_forward)
OP(attention_backward)
OP(experts_forward)
OP(experts_backward)
OP(permute_forward)
OP(permute_backward)
OP(combine_forward)
OP(combine_backward)
OP(route_forward)
OP(route_backward)
OP(cross_entropy_with_gradient)
OP(cross_entropy_part_forward)
OP(cross_entropy_part_backward)
OP(scale)
OP(embedding_forward)
OP(embedding_backward)
OP(router_statistics_backward)
OP(router_statistics_forward)
OP(square_sum)
OP(sum_tensors)
OP(adamw)
#define CHECK(name, ...) check(#name, name, __VA_ARGS__)

static void dense(bool half, int64_t rows, int64_t in, int64_t out) {
  auto x = random({rows, in}), w = random({out, in}), bias = random({out}), set = settings({double(half), 1, 1});
  CHECK(linear_forward, {x, w, bias, random({rows, out}), set}, {empty({rows, out}, half)});
  auto dy = empty({rows, out}, half);
  run(linear_forward, {x, w, bias, random({rows, out}), set, dy});
  CHECK(linear_backward, {dy, x, w, bias, set}, {empty({rows, in}), empty({out, in}), empty({out})});
  CHECK(rms_norm_forward, {x, random({in}), settings({1e-5})}, {empty({rows, in}, half)});
  CHECK(rms_norm_backward, {random({rows, in}), x, random({in}), settings({1e-5})}, {empty({rows, in}), empty({in})});
}

static void attention(bool half, int64_t length, double window) {
  const int64_t batch = 2, heads = 6, kv = 2, width = 10;
  auto q = random({batch, length, heads * width}), k = random({batch, length, kv * width});
  auto v = random({batch, length, kv * width}), cos = random({length, width / 2}), sin = random({length, width / 2});
  auto segments = integers({batch, length}, 0, 0), sinks = random({heads});
  for (int64_t i = length / 2; i < length; ++i) segments->as<int32_t>()[i] = 1;
  auto set = settings({double(half), window, 0.3, 1});
  auto out = empty(q->shape_, half), lse = empty({batch, length, heads});
  CHECK(attention_forward, {q, k, v, cos, sin, sinks, segments, set}, {out, lse});
  CHECK(attention_backward, {out, out, lse, q, k, v, cos, sin, sinks, segments, set},
        {empty(q->shape_), empty(k->shape_), empty(v->shape_), empty({heads})});
}

static void mixture(bool half, int64_t tokens, int64_t experts, int64_t width, int64_t inner) {
  const int64_t k = 3;
  auto x = random({tokens, width}), gates = random({tokens, k});
  auto ids = integers({tokens, k}, 0, static_cast<int>(experts));  // the last number is a dropped slot
  Arrays weights = {random({experts, width, 2 * inner}), random({experts, 2 * inner}), random({experts, inner, width}),
                    random({experts, width})};
  Arrays slopes;
  for (const auto &weight : weights) slopes.push_back(empty(weight->shape_));
  auto set = settings({double(half), 1.702, 7});
  auto y = empty({tokens, width}), hidden = empty({tokens * k, 2 * inner}, half);
  std::memset(hidden->as<void>(), 0, hidden->copy().size());  // rows of dropped slots are left as they are
  CHECK(experts_forward, {x, gates, ids, weights[0], weights[1], weights[2], weights[3], set}, {y, hidden});
  CHECK(experts_backward, {y, x, gates, ids, weights[0], weights[1], weights[2], weights[3], hidden, set},
        {empty({tokens, width}), empty({tokens, k}), slopes[0], slopes[1], slopes[2], slopes[3]});
  auto rows = empty({tokens * k, width}), slot = integers({tokens, k}), counts = integers({experts});
  CHECK(permute_forward, {x, ids, settings({double(experts)})}, {rows, slot, counts});
  CHECK(combine_forward, {rows, slot, gates}, {empty({tokens, width})});
  CHECK(combine_backward, {y, rows, slot, gates}, {empty(rows->shape_), empty({tokens, k})});
  CHECK(permute_backward, {rows, slot}, {empty({tokens, width})});
}

// The next tokens of a sequence, with a cache that is full afterwards.
static void generation(bool half, int64_t tokens, int64_t before) {
  int64_t batch = 2, heads = 4, kv = 2, width = 10, capacity = before + tokens;
  auto q = random({batch, tokens, heads * width}), k = random({batch, tokens, kv * width}), v = random(k->shape_);
  auto cos = random({capacity, width / 2}), sin = random({capacity, width / 2}), start = integers({1});
  start->as<int32_t>()[0] = static_cast<int32_t>(before);
  auto keys = empty({batch, kv, capacity, width}, half), values = empty(keys->shape_, half);
  std::memset(keys->as<void>(), 0, keys->copy().size());
  std::memset(values->as<void>(), 0, values->copy().size());
  CHECK(attention_cached, {q, k, v, cos, sin, random({heads}), start, keys, values, settings({double(half), 7, 0.3, 1})},
        {empty(q->shape_)});
}

static void router(int64_t tokens, int64_t experts, bool sigmoid) {
  auto logits = random({tokens, experts}), set = settings({double(sigmoid)});
  auto ids = integers({tokens, 2}, 0, static_cast<int>(experts));
  CHECK(router_statistics_forward, {logits, ids, set},
        {empty({experts}), empty({experts}), empty({1}), empty({1})});
  CHECK(router_statistics_backward, {random({experts}), random({1}), logits, set}, {empty(logits->shape_)});
}

static void vocabulary(bool half, int64_t tokens, int64_t width, int64_t words) {
  auto x = random({tokens, width}), w = random({words, width}), mask = random({tokens});
  auto labels = integers({tokens}, -1, static_cast<int>(words)), set = settings({double(half)});
  auto total = empty({1}), nll = empty({tokens}), lse = empty({tokens});
  CHECK(cross_entropy_with_gradient, {x, w, labels, mask, set}, {total, nll, empty(x->shape_), empty(w->shape_)});
  CHECK(cross_entropy_part_forward, {x, w, labels, set}, {lse, nll});
  CHECK(cross_entropy_part_backward, {mask, lse, x, w, labels, set}, {empty(x->shape_), empty(w->shape_)});
  CHECK(scale, {x, random({1})}, {empty(x->shape_)});
  CHECK(embedding_forward, {labels, w}, {empty({tokens, width})});
  CHECK(embedding_backward, {labels, x, w}, {empty(w->shape_)});
}

// A child of a fork has none of the pool's threads: its ops run on its own.
static void in_a_child_process() {
  mindmoe_set_threads(3);
  pid_t child = fork();
  if (child == 0) {
    alarm(60);
    auto x = random({700, 30}), total = empty({1});
    run(square_sum, {x, random({200000}), total});
    _exit(total->finite() ? 0 : 1);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0) {
    std::printf("an op hangs or fails after a fork\n");
    std::exit(1);
  }
}

// Every op that multiplies, at odd sizes.
void products(bool half) {
  dense(half, 1, 1, 1);
  dense(half, 67, 35, 131);
  for (int64_t length : {1, 77}) attention(half, length, 0);
  attention(half, 601, 130);
  mixture(half, 1, 1, 1, 1);
  mixture(half, 91, 5, 37, 19);
  generation(half, 1, 0);
  generation(half, 3, 600);
  vocabulary(half, 1, 1, 2);
  vocabulary(half, 83, 21, 1100);
}

int main() {
  for (bool half : {false, true}) products(half);
  bool tiles = mindmoe_use_tiles(1) != 0;
  if (tiles) products(true);
  for (int kind = 0; kind < 3; ++kind) {
    auto logits = random({45, 12}), gates = empty({45, 3}), set = settings({double(kind), 1, 2.5, 4, 2});
    auto ids = integers({45, 3});
    CHECK(route_forward, {logits, random({12}), set}, {gates, ids});
    CHECK(route_backward, {random({45, 3}), logits, ids, set}, {empty({45, 12})});
  }
  for (bool sigmoid : {false, true}) router(1, 1, sigmoid), router(150, 19, sigmoid);
  auto x = random({35, 1001});
  CHECK(sum_tensors, {x, x, x}, {empty(x->shape_)});
  CHECK(arrive, {x}, {empty(x->shape_)});
  auto p = random({70001}), g = random({70001}), small = random({3});
  CHECK(square_sum, {p, small}, {empty({1})});
  auto m = random({70001}), v = empty({70001}), lr = random({1}), factor = random({1}), step = empty({1});
  std::fill_n(v->as<float>(), v->size(), 0.5f);
  step->as<float>()[0] = 3.0f;
  CHECK(adamw, {p, m, v, g, lr, factor, step, settings({0.9, 0.95, 1e-8, 0.1, 1})}, {empty({1})}, true);
  if (!p->finite() || !m->finite() || !v->finite()) return 1;
  in_a_child_process();
  std::printf("all ops ok, %s a tile unit\n", tiles ? "with and without" : "without");
}
