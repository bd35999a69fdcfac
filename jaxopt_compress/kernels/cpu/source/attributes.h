// Dictionaries of attributes as structs.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace jaxopt_compress {

namespace ffi = xla::ffi;

// A member of a struct that attributes are decoded into.
template <typename T>
struct Field {
  std::string_view name;
};

// The attribute at a place of a dictionary, if that is its name.
template <typename T>
std::optional<T> attribute(const XLA_FFI_Attrs* attrs, int64_t at, Field<T> field,
                           ffi::DiagnosticEngine& diagnostic) {
  const XLA_FFI_ByteSpan& name = *attrs->names[at];
  if (std::string_view(name.ptr, name.len) != field.name) {
    return diagnostic.Emit("Missing attribute: ") << field.name;
  }
  return ffi::AttrDecoding<T>::Decode(attrs->types[at], attrs->attrs[at], diagnostic);
}

template <typename T, size_t... Is, typename... Ts>
std::optional<T> decoded(const XLA_FFI_Attrs* attrs, ffi::DiagnosticEngine& diagnostic,
                         std::index_sequence<Is...>, Field<Ts>... fields) {
  const std::tuple<std::optional<Ts>...> members = {
      attribute(attrs, Is, fields, diagnostic)...};
  if (!(std::get<Is>(members).has_value() && ...)) return std::nullopt;
  return T{*std::get<Is>(members)...};
}

// A struct from a dictionary of its members. Attributes come sorted by name, so members
// are sorted, too, and each is looked for in one place. XLA_FFI_REGISTER_STRUCT_ATTR_
// DECODING searches the dictionary for each, and a small product takes a twentieth longer.
template <typename T, typename... Ts>
std::optional<T> decoded(const XLA_FFI_Attrs* attrs, ffi::DiagnosticEngine& diagnostic,
                         Field<Ts>... fields) {
  if (attrs->size != sizeof...(Ts)) {
    return diagnostic.Emit("Wrong number of attributes: ") << attrs->size;
  }
  return decoded<T>(attrs, diagnostic, std::index_sequence_for<Ts...>{}, fields...);
}

}  // namespace jaxopt_compress

// Lets T be the attributes of a handler, or a member of them. To be used outside of all
// namespaces.
#define JAXOPT_COMPRESS_DECODE(T, ...)                                              \
  template <>                                                                       \
  struct xla::ffi::AttrDecoding<T> {                                                \
    using Type = T;                                                                 \
    template <typename M>                                                           \
    using Field = jaxopt_compress::Field<M>;                                        \
    static std::optional<T> Decode(XLA_FFI_AttrType type, void* attr,               \
                                   DiagnosticEngine& diagnostic) {                  \
      if (type != XLA_FFI_AttrType_DICTIONARY) {                                    \
        return diagnostic.Emit("An attribute is no dictionary");                    \
      }                                                                             \
      return jaxopt_compress::decoded<T>(static_cast<const XLA_FFI_Attrs*>(attr),   \
                                         diagnostic, __VA_ARGS__);                  \
    }                                                                               \
  }
