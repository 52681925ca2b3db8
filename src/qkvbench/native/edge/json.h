// JSON as the header of a model file has it, read strictly: a wrong byte is refused.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <string>
#include <utility>
#include <vector>

#include "error.h"

struct Json {
    enum Type { NOTHING, TRUTH, NUMBER, TEXT, LIST, OBJECT };
    Type type = NOTHING;
    double number = 0;  // of a truth value: 0 or 1
    std::string text;
    std::vector<Json> items;
    std::vector<std::pair<std::string, Json>> fields;

    const Json* find(const char* name) const {
        for (const auto& [key, value] : fields)
            if (key == name) return &value;
        return nullptr;
    }

    const Json& at(const char* name, Type type) const {
        const Json* found = find(name);
        if (!found || found->type != type) refuse("its header has no '%s', or of another type", name);
        return *found;
    }

    // A whole number from `least` to `most`.
    int64_t whole(const char* name, int64_t least, int64_t most) const {
        return at(name, NUMBER).whole_number(name, least, most);
    }

    int64_t whole_number(const char* name, int64_t least, int64_t most) const {
        if (type != NUMBER || !(number >= double(least) && number <= double(most)) ||
            number != double(int64_t(number)))
            refuse("its header's '%s' is no whole number from %lld to %lld", name, (long long)least,
                   (long long)most);
        return int64_t(number);
    }
};

class JsonReader {
  public:
    JsonReader(const char* from, size_t size) : at_(from), end_(from + size) {}

    // The one value, with nothing but spaces behind it.
    Json whole() {
        Json value = read(0);
        skip_spaces();
        if (at_ != end_) wrong();
        return value;
    }

  private:
    static constexpr int MAX_DEPTH = 16;
    const char *at_, *end_;

    [[noreturn]] static void wrong() { refuse("its header is not JSON"); }

    void skip_spaces() {
        while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
    }

    char next() {
        if (at_ == end_) wrong();
        return *at_++;
    }

    bool accept(char expected) {
        skip_spaces();
        if (at_ == end_ || *at_ != expected) return false;
        ++at_;
        return true;
    }

    Json read(int depth) {
        if (depth > MAX_DEPTH) wrong();
        skip_spaces();
        if (at_ == end_) wrong();
        Json value;
        switch (*at_) {
            case '{': ++at_; read_fields(value, depth); break;
            case '[': ++at_; read_items(value, depth); break;
            case '"': value.type = Json::TEXT; value.text = read_text(); break;
            case 't': read_word("true"); value.type = Json::TRUTH; value.number = 1; break;
            case 'f': read_word("false"); value.type = Json::TRUTH; break;
            case 'n': read_word("null"); break;
            default: value.type = Json::NUMBER; value.number = read_number();
        }
        return value;
    }

    void read_fields(Json& value, int depth) {
        value.type = Json::OBJECT;
        if (accept('}')) return;
        do {
            skip_spaces();
            if (at_ == end_ || *at_ != '"') wrong();
            std::string name = read_text();
            if (!accept(':')) wrong();
            value.fields.emplace_back(std::move(name), read(depth + 1));
        } while (accept(','));
        if (!accept('}')) wrong();
    }

    void read_items(Json& value, int depth) {
        value.type = Json::LIST;
        if (accept(']')) return;
        do value.items.push_back(read(depth + 1)); while (accept(','));
        if (!accept(']')) wrong();
    }

    void read_word(const char* word) {
        for (; *word; ++word)
            if (next() != *word) wrong();
    }

    double read_number() {
        std::string digits;
        while (at_ != end_ && (strchr_of("+-.eE", *at_) || (*at_ >= '0' && *at_ <= '9')))
            digits += *at_++;
        char* stop = nullptr;
        const double number = strtod(digits.c_str(), &stop);
        if (digits.empty() || *stop || !(number - number == 0)) wrong();
        return number;
    }

    static bool strchr_of(const char* letters, char letter) {
        for (; *letters; ++letters)
            if (*letters == letter) return true;
        return false;
    }

    // The exporter writes ASCII alone; what is escaped beyond it becomes '?', since no name has it.
    std::string read_text() {
        std::string text;
        ++at_;
        for (char letter; (letter = next()) != '"';) {
            if ((unsigned char)letter < 0x20) wrong();
            if (letter != '\\') {
                text += letter;
                continue;
            }
            switch (const char escaped = next()) {
                case '"': case '\\': case '/': text += escaped; break;
                case 'b': text += '\b'; break;
                case 'f': text += '\f'; break;
                case 'n': text += '\n'; break;
                case 'r': text += '\r'; break;
                case 't': text += '\t'; break;
                case 'u': text += read_escape(); break;
                default: wrong();
            }
        }
        return text;
    }

    char read_escape() {
        int code = 0;
        for (int i = 0; i < 4; ++i) {
            const char digit = next();
            const int value = digit >= '0' && digit <= '9'   ? digit - '0'
                              : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
                              : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
                                                             : -1;
            if (value < 0) wrong();
            code = code * 16 + value;
        }
        return code < 0x80 ? char(code) : '?';
    }
};
