// A safetensors file, memory-mapped: every size is checked against the file before it is used.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <initializer_list>
#include <map>

#include "json.h"

struct TensorView {
    std::vector<int64_t> shape;
    const char* data;
    std::string dtype;  // F32; I8, int8; U8, int4 with two numbers a byte

    int bytes() const { return dtype == "F32" ? 4 : 1; }
};

class ModelFile {
  public:
    explicit ModelFile(const char* path) {
        // Without O_NONBLOCK a pipe would wait for its writer.
        const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (file < 0) refuse("it cannot be opened: %s", strerror(errno));
        struct stat status;
        if (fstat(file, &status) || !S_ISREG(status.st_mode)) refuse("it is not a regular file");
        size_ = uint64_t(status.st_size);
        if (size_ < 8) refuse("it is too short for a safetensors file");
        void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
        if (mapped == MAP_FAILED) refuse("it cannot be mapped: %s", strerror(errno));
        close(file);
        const char* bytes = (const char*)mapped;
        uint64_t header = 0;  // little-endian
        for (int i = 0; i < 8; ++i) header |= uint64_t((unsigned char)bytes[i]) << 8 * i;
        if (header > MAX_HEADER || header > size_ - 8)
            refuse("it is no safetensors file, or its header is cut off");
        read_tensors(JsonReader(bytes + 8, header).whole(), bytes + 8 + header, size_ - 8 - header);
    }

    // What the exporter says of the program, beside the weights.
    const Json& about() const { return about_; }
    uint64_t size() const { return size_; }

    // The numbers in fp32 of a tensor, which must be there in this shape.
    const float* tensor(const std::string& name, std::initializer_list<int64_t> shape) const {
        return (const float*)numbers(name, shape, "F32");
    }
    const int8_t* int8(const std::string& name, std::initializer_list<int64_t> shape) const {
        return (const int8_t*)numbers(name, shape, "I8");
    }
    const uint8_t* int4(const std::string& name, std::initializer_list<int64_t> shape) const {
        return (const uint8_t*)numbers(name, shape, "U8");
    }

    bool has(const std::string& name) const { return tensors_.count(name) > 0; }
    bool has(const std::string& name, const char* dtype) const {
        const auto found = tensors_.find(name);
        return found != tensors_.end() && found->second.dtype == dtype;
    }

  private:
    // Of models in use less than one; each value of it takes up to a hundred bytes of memory.
    static constexpr uint64_t MAX_HEADER = 4'000'000;
    static constexpr int64_t MAX_SIZE = int64_t(1) << 40;
    uint64_t size_;
    Json about_;
    std::map<std::string, TensorView> tensors_;

    const char* numbers(const std::string& name, std::initializer_list<int64_t> shape,
                        const char* dtype) const {
        const auto found = tensors_.find(name);
        if (found == tensors_.end()) refuse("it has no tensor %.200s", name.c_str());
        if (found->second.shape != std::vector<int64_t>(shape))
            refuse("its tensor %.200s has another shape than its header says", name.c_str());
        if (found->second.dtype != dtype) refuse("its tensor %.200s is not %s", name.c_str(), dtype);
        return found->second.data;
    }

    void read_tensors(const Json& header, const char* data, uint64_t size) {
        if (header.type != Json::OBJECT) refuse("its header is no object");
        uint64_t last = 0;
        for (const auto& [name, entry] : header.fields) {
            if (name == "__metadata__") {
                const std::string& text = entry.at("qkvbench", Json::TEXT).text;
                about_ = JsonReader(text.data(), text.size()).whole();
                continue;
            }
            const auto& offsets = entry.at("data_offsets", Json::LIST).items;
            const std::string& dtype = entry.at("dtype", Json::TEXT).text;
            if (dtype != "F32" && dtype != "I8" && dtype != "U8")
                refuse("its tensor %.200s is neither F32 nor I8 nor U8", name.c_str());
            if (offsets.size() != 2) refuse("its header has other than two offsets of a tensor");
            const int64_t most = size > uint64_t(MAX_SIZE) ? MAX_SIZE : int64_t(size);
            const int64_t begin = offsets[0].whole_number("data_offsets", 0, most);
            const int64_t end = offsets[1].whole_number("data_offsets", begin, most);
            TensorView view{{}, data + begin, dtype};
            int64_t count = 1;
            for (const Json& each : entry.at("shape", Json::LIST).items) {
                view.shape.push_back(each.whole_number("shape", 1, MAX_SIZE));
                if (__builtin_mul_overflow(count, view.shape.back(), &count) || count > MAX_SIZE)
                    refuse("its tensor %.200s is larger than any file", name.c_str());
            }
            if (end - begin != view.bytes() * count || (uintptr_t)view.data % view.bytes())
                refuse("its tensor %.200s has another number of bytes than its shape", name.c_str());
            if (!tensors_.emplace(name, view).second) refuse("it has two tensors %.200s", name.c_str());
            if (uint64_t(end) > last) last = uint64_t(end);
        }
        if (last != size) refuse("its tensors end elsewhere than the file");
        if (about_.type != Json::OBJECT) refuse("it was not written by 'qkvbench export --to edge'");
    }
};
