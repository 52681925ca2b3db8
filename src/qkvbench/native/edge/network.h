// A decoder: what its file says of it, its cache, and a step that reads some tokens. The products and the
// attention are those of ../cpp; norms, activations and RoPE of new rows are here.
#pragma once

#include <math.h>

#include <memory>

#include "../cpp/decode.h"
#include "model_file.h"

extern "C" const char* qkv_isa(int which, int* supported);
extern "C" int qkv_decode(int which, const QkvDecode* call);
extern "C" void qkv_linear(int which, const QkvLinear* call);

// Tokens that a step reads at most: their rows share one reading of the weights.
constexpr int MAX_TOKENS = 8;

struct Norm {
    bool centered;  // LayerNorm; otherwise RMSNorm
    float eps;
    const float *weight, *bias;
};

// A matrix in fp32; in int8 with a scale for each output; or in int4 with one for QKV_GROUP numbers of it.
struct Linear {
    const float *weight = nullptr, *bias = nullptr;
    const int8_t* int8 = nullptr;
    const uint8_t* int4 = nullptr;
    const float* scales = nullptr;
    int inputs = 0, outputs = 0;
};

// Memory that the system zeroes when it is first used, so what is never written costs none.
struct Rows {
    float* data = nullptr;
    explicit Rows(size_t count) : data((float*)calloc(count, sizeof(float))) {
        if (!data) refuse("its cache of %zu bytes does not fit into memory", count * sizeof(float));
    }
    Rows(Rows&& other) : data(other.data) { other.data = nullptr; }
    ~Rows() { free(data); }
};

// The angles of RoPE in radians for each position, and the tables of the decode kernel.
struct Rope {
    std::vector<double> frequencies;
    std::vector<float> in_tile, per_chunk;

    int half() const { return int(frequencies.size()); }

    void fill_tables(int64_t slots) {
        fill(in_tile, 1, QKV_TILE + 1);
        fill(per_chunk, QKV_CHUNK, (slots + QKV_CHUNK - 1) / QKV_CHUNK);
    }

    // Rotates each of `heads` rows at a position, coordinate i with i + half.
    void rotate(float* row, int heads, int width, int64_t position) const {
        for (int i = 0; i < half(); ++i) {
            const double angle = double(position) * frequencies[i];
            const float c = float(cos(angle)), s = float(sin(angle));
            for (int head = 0; head < heads; ++head) {
                float *x = row + int64_t(head) * width + i, *y = x + half();
                const float first = *x * c - *y * s;
                *y = *y * c + *x * s;
                *x = first;
            }
        }
    }

  private:
    void fill(std::vector<float>& table, int step, int64_t rows) const {
        const int padded = (half() + QKV_LANES - 1) / QKV_LANES * QKV_LANES;
        table.assign(size_t(rows) * 2 * padded, 0);
        for (int64_t row = 0; row < rows; ++row)
            for (int i = 0; i < half(); ++i) {
                const double angle = double(row * step) * frequencies[i];
                table[(2 * row) * padded + i] = float(cos(angle));
                table[(2 * row + 1) * padded + i] = float(sin(angle));
            }
    }
};

// A tensor of the cache: the output of one matrix, with RoPE or without.
struct Cached {
    int matrix;
    bool rotated;
    Rows rows;  // (heads, capacity, head_dim)
    uint64_t page;
};

struct Layer {
    int heads, kv_heads, head_dim;
    std::vector<Linear> matrices;  // of Q, K and V; tied ones once
    int query;                     // the matrix of Q
    std::vector<Cached> cached;    // K, then V; one tensor if they are one
    bool rope_on_read;
    Rope rope;
    Linear output, gate, up, down;
    bool gated;                    // SwiGLU; otherwise GELU
    Norm attention_norm, feed_forward_norm;
};

class Network {
  public:
    Network(const ModelFile& file, int threads) : file_(file), about_(file.about()), threads_(threads) {
        if (about_.whole("version", 0, INT32_MAX) != 1) refuse("it is of another version than this program");
        vocabulary = int(about_.whole("vocabulary", 1, MAX_WIDTH));
        context = about_.whole("context", 1, INT32_MAX);
        reads_bytes = about_.at("bytes", Json::TRUTH).number != 0 && vocabulary == 256;
        d_model_ = int(about_.whole("d_model", 1, MAX_WIDTH));
        x_.resize(size_t(MAX_TOKENS) * d_model_);
        table_ = matrix("embedding.table", vocabulary, d_model_);
        positions_ = file.has("embedding.positions")
                         ? file.tensor("embedding.positions", {context, d_model_}) : nullptr;
        head_ = file.has("output.weight") ? matrix("output.weight", vocabulary, d_model_) : table_;
        norm_ = norm(about_.at("norm", Json::OBJECT), "norm");
        for (int isa = 0, supported = 0; isa_ < 0; ++isa) {
            if (!qkv_isa(isa, &supported)) refuse("this processor runs none of the kernels");
            if (supported) isa_ = isa;
        }
    }

    int vocabulary;
    int64_t context;
    bool reads_bytes;

    const char* isa() const {
        int supported;
        return qkv_isa(isa_, &supported);
    }

    // Makes the layers, with a cache for so many tokens.
    void reserve(int64_t capacity) {
        capacity_ = capacity;
        for (const Json& each : about_.at("layers", Json::LIST).items) add_layer(each);
    }

    uint64_t cache_bytes() const {
        uint64_t bytes = 0;
        for (const Layer& layer : layers_)
            bytes += layer.cached.size() * row_floats(layer) * capacity_ * sizeof(float);
        return bytes;
    }

    // Reads `count` tokens, at most MAX_TOKENS; the logits after the last one.
    const std::vector<float>& step(const int* tokens, int count) {
        for (int t = 0; t < count; ++t)
            for (int i = 0; i < d_model_; ++i)
                x_[size_t(t) * d_model_ + i] =
                    embedding(tokens[t], i) + (positions_ ? positions_[(length_ + t) * d_model_ + i] : 0);
        for (Layer& layer : layers_) {
            attend(layer, count);
            feed_forward(layer, count);
        }
        length_ += count;
        normalize(norm_, x_.data() + size_t(count - 1) * d_model_, 1);
        multiply(head_, normed_, logits_, 1);
        return logits_;
    }

  private:
    static constexpr int MAX_WIDTH = 1 << 24;
    const ModelFile& file_;
    const Json& about_;
    const int threads_;
    int d_model_, isa_ = -1;
    const float* positions_;
    Linear table_, head_;
    Norm norm_;
    std::vector<Layer> layers_;
    int64_t capacity_ = 0, length_ = 0;
    std::vector<float> x_, normed_, made_, logits_, context_, gates_, hidden_;
    std::vector<std::vector<float>> roots_;

    static size_t row_floats(const Layer& layer) { return size_t(layer.kv_heads) * layer.head_dim; }

    Norm norm(const Json& about, const std::string& name) const {
        const std::string& kind = about.at("kind", Json::TEXT).text;
        if (kind != "layer" && kind != "rms") refuse("its norm '%.40s' is unknown", kind.c_str());
        return {kind == "layer", float(about.at("eps", Json::NUMBER).number),
                file_.tensor(name + ".weight", {d_model_}),
                kind == "layer" ? file_.tensor(name + ".bias", {d_model_}) : nullptr};
    }

    Linear matrix(const std::string& name, int outputs, int inputs) const {
        Linear made{};
        made.inputs = inputs, made.outputs = outputs;
        if (file_.has(name, "I8")) {
            made.int8 = file_.int8(name, {outputs, inputs});
            made.scales = file_.tensor(name + "_scale", {outputs});
        } else if (file_.has(name, "U8")) {
            if (inputs % QKV_GROUP) refuse("its tensor %.200s in int4 is not in whole groups", name.c_str());
            made.int4 = file_.int4(name, {outputs, inputs / 2});
            made.scales = file_.tensor(name + "_scale", {outputs, inputs / QKV_GROUP});
        } else {
            made.weight = file_.tensor(name, {outputs, inputs});
        }
        return made;
    }

    Linear linear(const std::string& name, int outputs, int inputs) const {
        Linear made = matrix(name + ".weight", outputs, inputs);
        if (file_.has(name + ".bias")) made.bias = file_.tensor(name + ".bias", {outputs});
        return made;
    }

    float embedding(int token, int i) const {
        const int64_t at = int64_t(token) * d_model_ + i;
        if (table_.int4) {
            const int8_t two = int8_t(table_.int4[at / 2]);
            return float(at % 2 ? two >> 4 : int8_t(uint8_t(two) << 4) >> 4) * table_.scales[at / QKV_GROUP];
        }
        return table_.int8 ? table_.int8[at] * table_.scales[token] : table_.weight[at];
    }

    void add_layer(const Json& about) {
        const std::string at = "blocks." + std::to_string(layers_.size()) + ".";
        Layer layer{};
        layer.heads = int(about.whole("heads", 1, 1 << 16));
        layer.kv_heads = int(about.whole("kv_heads", 1, layer.heads));
        layer.head_dim = int(about.whole("head_dim", 8, QKV_MAX_HEAD_DIM));
        if (layer.heads % layer.kv_heads || layer.head_dim % 8) refuse("its heads have sizes that cannot be");
        std::vector<std::string> names;
        for (const Json& each : about.at("matrices", Json::LIST).items) {
            const int heads = int(each.whole("heads", 1, layer.heads));
            names.push_back(each.at("name", Json::TEXT).text);
            layer.matrices.push_back(linear(at + "attention." + names.back(), heads * layer.head_dim, d_model_));
        }
        const auto matrix = [&](const Json& from, const char* field, int heads) {
            const std::string& name = from.at(field, Json::TEXT).text;
            for (size_t i = 0; i < names.size(); ++i)
                if (names[i] == name && layer.matrices[i].outputs == heads * layer.head_dim) return int(i);
            refuse("its header has no matrix '%.40s' of %d heads", name.c_str(), heads);
        };
        layer.query = matrix(about, "query", layer.heads);
        for (const Json& each : about.at("cached", Json::LIST).items) {
            Cached cached{matrix(each, "matrix", layer.kv_heads), each.at("rope", Json::TRUTH).number != 0,
                          Rows(row_floats(layer) * capacity_), 0};
            cached.page = (uint64_t)(uintptr_t)cached.rows.data;
            layer.cached.push_back(std::move(cached));
        }
        if (layer.cached.empty() || layer.cached.size() > 2) refuse("its header caches neither one tensor nor two");
        layer.rope_on_read = about.at("rope_on_read", Json::TRUTH).number != 0;
        for (const Json& each : about.at("frequencies", Json::LIST).items) {
            if (each.type != Json::NUMBER) refuse("its header's 'frequencies' are no numbers");
            layer.rope.frequencies.push_back(each.number);
        }
        if (2 * layer.rope.half() > layer.head_dim) refuse("its RoPE rotates more than a head");
        if (layer.rope_on_read) layer.rope.fill_tables(capacity_);
        layer.output = linear(at + "attention.o", d_model_, layer.heads * layer.head_dim);
        layer.attention_norm = norm(about.at("norm", Json::OBJECT), at + "attention_norm");
        layer.feed_forward_norm = norm(about.at("norm", Json::OBJECT), at + "feed_forward_norm");
        const Json& feed_forward = about.at("feed_forward", Json::OBJECT);
        const std::string& kind = feed_forward.at("kind", Json::TEXT).text;
        if (kind != "gelu" && kind != "swiglu") refuse("its feed-forward '%.40s' is unknown", kind.c_str());
        const int width = int(feed_forward.whole("width", 1, MAX_WIDTH));
        layer.gated = kind == "swiglu";
        if (layer.gated) layer.gate = linear(at + "feed_forward.gate", width, d_model_);
        layer.up = linear(at + "feed_forward.up", width, d_model_);
        layer.down = linear(at + "feed_forward.down", d_model_, width);
        layers_.push_back(std::move(layer));
    }

    void multiply(const Linear& linear, const std::vector<float>& x, std::vector<float>& out, int rows) {
        if (out.size() < size_t(rows) * linear.outputs) out.resize(size_t(rows) * linear.outputs);
        const void* weights = linear.int4 ? (const void*)linear.int4
                              : linear.int8 ? (const void*)linear.int8 : linear.weight;
        const QkvLinear call = {linear.int4 ? QKV_INT4 : linear.int8 ? QKV_INT8 : QKV_FP32, rows, linear.inputs, linear.outputs, threads_,
                                weights, linear.bias, x.data(), out.data(), linear.scales};
        qkv_linear(isa_, &call);
    }

    void normalize(const Norm& norm, const float* rows, int count) {
        if (normed_.size() < size_t(count) * d_model_) normed_.resize(size_t(count) * d_model_);
        for (int t = 0; t < count; ++t) {
            const float* x = rows + size_t(t) * d_model_;
            double mean = 0, square = 0;
            if (norm.centered) for (int i = 0; i < d_model_; ++i) mean += x[i];
            mean /= d_model_;
            for (int i = 0; i < d_model_; ++i) square += (x[i] - mean) * (x[i] - mean);
            const double scale = 1 / sqrt(square / d_model_ + norm.eps);
            for (int i = 0; i < d_model_; ++i)
                normed_[size_t(t) * d_model_ + i] =
                    float((x[i] - mean) * scale) * norm.weight[i] + (norm.bias ? norm.bias[i] : 0);
        }
    }

    void add_to_stream(const std::vector<float>& rows, int count) {
        for (size_t i = 0; i < size_t(count) * d_model_; ++i) x_[i] += rows[i];
    }

    void attend(Layer& layer, int count) {
        normalize(layer.attention_norm, x_.data(), count);
        const int dim = layer.head_dim, queries = layer.heads * dim;
        if (roots_.size() < layer.matrices.size()) roots_.resize(layer.matrices.size());
        for (size_t i = 0; i < layer.matrices.size(); ++i) multiply(layer.matrices[i], normed_, roots_[i], count);
        // Rows are cached before Q is scaled and rotated: Q may be made by the matrix of K.
        for (Cached& cached : layer.cached)
            for (int t = 0; t < count; ++t) {
                std::vector<float> row(roots_[cached.matrix].begin() + t * row_floats(layer),
                                       roots_[cached.matrix].begin() + (t + 1) * row_floats(layer));
                if (cached.rotated) layer.rope.rotate(row.data(), layer.kv_heads, dim, length_ + t);
                for (int head = 0; head < layer.kv_heads; ++head)
                    memcpy(cached.rows.data + (head * capacity_ + length_ + t) * dim, row.data() + head * dim,
                           dim * sizeof(float));
            }
        std::vector<float>& query = roots_[layer.query];
        const float scale = 1 / sqrtf(float(dim));
        for (int t = 0; t < count; ++t) {
            layer.rope.rotate(query.data() + t * queries, layer.heads, dim, length_ + t);
            for (int i = 0; i < queries; ++i) query[t * queries + i] *= scale;
        }
        if (context_.size() < size_t(count) * queries) context_.resize(size_t(count) * queries);
        attend_to_cache(layer, count, query.data());
        multiply(layer.output, context_, made_, count);
        add_to_stream(made_, count);
    }

    // One sequence for each new token: all read the same page, each up to itself.
    void attend_to_cache(const Layer& layer, int count, const float* query) {
        uint64_t keys[MAX_TOKENS], values[MAX_TOKENS];
        int64_t first[MAX_TOKENS] = {}, length[MAX_TOKENS];
        for (int t = 0; t < count; ++t) {
            keys[t] = layer.cached.front().page;
            values[t] = layer.cached.back().page;
            length[t] = length_ + t + 1;
        }
        QkvDecode call{};
        call.type = QKV_FP32;
        call.head_dim = layer.head_dim;
        call.batch = count;
        call.roots = layer.kv_heads;
        call.group = layer.heads / layer.kv_heads;
        call.threads = threads_;
        call.page_rows = int32_t(capacity_);
        call.pages_each = 1;
        call.keys = {keys, capacity_ * layer.head_dim, layer.head_dim, nullptr, 0, 0};
        if (layer.cached.size() == 2) {
            call.values = call.keys;
            call.values.pages = values;
        }
        call.first = first;
        call.length = length;
        call.query = query;
        call.out = context_.data();
        if (layer.rope_on_read) {
            call.rotary_dim = 2 * layer.rope.half();
            call.rope_in_tile = layer.rope.in_tile.data();
            call.rope_per_chunk = layer.rope.per_chunk.data();
        }
        if (qkv_decode(isa_, &call) >= 0) refuse("its cache is too small");  // cannot happen
    }

    void feed_forward(const Layer& layer, int count) {
        normalize(layer.feed_forward_norm, x_.data(), count);
        multiply(layer.up, normed_, hidden_, count);
        const size_t size = size_t(count) * layer.up.outputs;
        if (layer.gated) {
            multiply(layer.gate, normed_, gates_, count);
            for (size_t i = 0; i < size; ++i) hidden_[i] *= gates_[i] / (1 + expf(-gates_[i]));
        } else {
            for (size_t i = 0; i < size; ++i) hidden_[i] *= 0.5f * (1 + erff(hidden_[i] * float(M_SQRT1_2)));
        }
        multiply(layer.down, hidden_, made_, count);
        add_to_stream(made_, count);
    }
};
